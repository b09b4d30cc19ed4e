"""Small disks: file systems in memory that are full soon, mounted for a test. This needs root."""

import contextlib
import subprocess
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def small_disk(place: Path, *, num_bytes: int) -> Generator[Path]:
    """Mount a file system of a few bytes, and unmount it in the end."""
    place.mkdir(parents=True, exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(place))
    try:
        yield place
    finally:
        # Lazily: what a killed process left open would hold it for a moment.
        _call("umount", "--lazy", str(place))


def make_read_only(place: Path) -> None:
    """Let nothing be written there any more."""
    _call("mount", "-o", "remount,ro", str(place))


def _call(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr}"
