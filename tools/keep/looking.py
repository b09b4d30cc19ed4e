"""Where ranks are when something is wrong: their processes' states and stacks.

python -m tools.keep.looking PID…      # on the node of the processes: what each is at, as JSON
"""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from train.watch.memory_kills import out_of_memory_kills

LOOK_SECONDS: Final = 40.0
"""For all ranks of a node: srun or ssh, the imports, and a look that may itself take 20 s."""

_SECONDS: Final = 20.0
_AT_A_TIME: Final = 32


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One call that a thread is in."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a process is found at.

    Attributes:
        state: as psutil names it, such as "stopped", "sleeping", "running", "zombie"; None if the
            process is gone or elsewhere.
        frames: of its main thread, innermost first; empty where they cannot be read.
    """

    state: str | None
    frames: tuple[Frame, ...] = ()


UNSEEN: Final = Look(state=None)


def look(pid: int) -> Look:
    """What a process of this host is at."""
    try:
        state = psutil.Process(pid).status()
    except psutil.Error:
        return Look(state=None)
    return Look(state=state, frames=_stack(pid))


def looks_of(text: str) -> list[Look]:
    """What `main` has printed; none where it is something else."""
    try:
        told: list[dict[str, Any]] = json.loads(text)
        return [
            Look(state=each["state"], frames=tuple(Frame(**frame) for frame in each["frames"]))
            for each in told
        ]
    except (ValueError, KeyError, TypeError):
        return []


def looks_on(
    processes: Mapping[int, tuple[str, int]], asked: Callable[[str, Sequence[str]], str | None]
) -> dict[int, Look]:
    """What ranks are found at, by a look on each of their nodes; without those that say nothing.

    Args:
        processes: by rank, its node and its process there.
        asked: what this module prints on a node, given arguments.
    """
    ranks_on = defaultdict[str, list[int]](list)
    for rank, (node, _) in processes.items():
        ranks_on[node].append(rank)

    def found_on(node: str) -> dict[int, Look]:
        ranks = ranks_on[node]
        told = asked(node, [str(processes[rank][1]) for rank in ranks])
        return dict(zip(ranks, looks_of(told or ""), strict=False))

    found: dict[int, Look] = {}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for each in pool.map(found_on, ranks_on):
            found |= each
    return found


def _stack(pid: int) -> tuple[Frame, ...]:
    """Frames of the main thread, read without its help: it may be stopped, or hang in C."""
    reader = Path(sys.executable).parent / "py-spy"
    command = str(reader) if reader.exists() else shutil.which("py-spy")
    if command is None:
        return ()
    try:
        found = subprocess.run(
            [command, "dump", "--nonblocking", "--json", "--pid", str(pid)],
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
        threads: list[dict[str, Any]] = json.loads(found.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return ()
    main = next((each for each in threads if each.get("thread_name") == "MainThread"), None)
    main = main or next((each for each in threads if each.get("os_thread_id") == pid), None)
    return tuple(
        Frame(function=each["name"], file=each["filename"], line=each["line"])
        for each in (main or {}).get("frames", ())
    )


def main(arguments: Sequence[str]) -> None:
    """Print what processes of this node are at."""
    if not arguments:
        sys.stdout.write(str(out_of_memory_kills()))
        return
    sys.stdout.write(json.dumps([asdict(look(int(pid))) for pid in arguments]))


if __name__ == "__main__":
    main(sys.argv[1:])
