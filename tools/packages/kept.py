"""Downloaded files that are kept, so that a second build needs no network."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from train.errors import DataError
from train.storage.path import user_cache

DOWNLOAD_TIMEOUT_SECONDS: Final = 300.0


def package_cache() -> Path:
    """Where downloaded packages are kept."""
    return user_cache("packages")


def kept(
    directory: Path,
    pattern: str,
    download: Callable[[Path], Path],
    *,
    name: str,
    report: Callable[[str], None],
) -> tuple[Path, str]:
    """A file from the cache, or else a downloaded one.

    Args:
        directory: of the cache, for this file alone.
        pattern: that the file's name matches.
        download: leaves the file in a scratch directory that it is given, and says where.
        name: of what is downloaded, for messages.
        report: told what is being done.

    Returns:
        Its path and its SHA-256.

    Raises:
        DataError: it is not cached and cannot be downloaded.
    """
    for path in sorted(directory.glob(pattern)):
        note = path.with_suffix(".sha256")
        digest = sha256(path)
        # A file without its note was left by a download that was cut off.
        if note.is_file() and note.read_text().strip() == digest:
            return path, digest
    report(f"downloading {name}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"Cannot keep packages in {directory} ({error.strerror}); set XDG_CACHE_HOME to a "
            "directory that can be written."
        ) from error
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        downloaded = download(Path(scratch))
        path = directory / downloaded.name
        digest = sha256(downloaded)
        path.with_suffix(".sha256").write_text(digest + "\n")
        os.replace(downloaded, path)
    return path, digest


def run(
    command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of a package manager.

    Raises:
        DataError: it takes too long.
    """
    try:
        return subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{' '.join(command[-2:])} took longer than {DOWNLOAD_TIMEOUT_SECONDS:g} s; check the "
            "network and the package manager's mirror, and build again."
        ) from error


def program(name: str, remedy: str) -> str:
    """Where a program is.

    Raises:
        DataError: it is missing; the message ends with the remedy.
    """
    found = shutil.which(name)
    if found is None:
        raise DataError(f"{name} is missing, {remedy}")
    return found


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_line(text: str) -> str:
    """The last line of what a program says, warnings aside; mostly why it failed."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("W:")]
    return lines[-1].strip() if lines else ""
