"""Daemons in a throw-away directory: started detached, recorded, and stopped by record alone.

A lab directory holds `lab.json` with every process that was started. Stopping signals a process
only if its name and its start time are still those recorded, so that a process id which has since
been given to another program is never touched.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import SystemRandom
from typing import Self

from pydantic import BaseModel, Field

from train.errors import UserError
from train.storage.place import Place

RECORD_NAME = "lab.json"
# Debian keeps daemons where an ordinary user's PATH does not look.
SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
NUM_LOG_LINES = 15
START_TIMEOUT_SECONDS = 30.0
KILL_TIMEOUT_SECONDS = 10.0


class LabError(UserError):
    """A service of the lab cannot be started or used; the message says what to do."""


@dataclass(frozen=True)
class Daemon:
    """A started process, with what is needed to know it again."""

    name: str
    """As the kernel has it, which cuts it at 15 characters."""
    process_id: int
    start_ticks: int
    """Start time of the process in clock ticks since boot, field 22 of `/proc/PID/stat`."""


class Record(BaseModel):
    """What runs in a lab directory, and the environment that programs need to use it."""

    directory: Path = Field(exclude=True)
    settings: dict[str, int]
    environment: dict[str, str]
    daemons: list[Daemon] = []

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """Read the record of `directory`; None where no lab was ever started.

        Raises:
            LabError: it is damaged.
        """
        path = directory / RECORD_NAME
        if not path.exists():
            return None
        try:
            return cls.model_validate({"directory": directory, **json.loads(path.read_bytes())})
        except (ValueError, TypeError):
            raise LabError(f"{path} is no record of a lab: choose another --directory") from None

    @classmethod
    def running(cls, directory: Path) -> Self | None:
        """The record of what runs in `directory`; None unless every daemon of it is alive."""
        record = cls.load(directory)
        is_running = record and record.daemons and all(map(is_alive, record.daemons))
        return record if is_running else None

    @property
    def logs(self) -> Path:
        """Where the daemons write what they have to say."""
        return self.directory / "log"

    def begin(self) -> None:
        """Empty the directory, or create it.

        Raises:
            LabError: it holds files but no lab was ever started in it.
        """
        if self.directory.exists() and any(self.directory.iterdir()):
            if not (self.directory / RECORD_NAME).exists():
                raise LabError(
                    f"{self.directory} holds files that are no lab's: choose another --directory"
                )
            shutil.rmtree(self.directory)
        self.logs.mkdir(parents=True)
        self._save()

    def _save(self) -> None:
        Place.of(self.directory / RECORD_NAME).write(self.model_dump_json(indent=2).encode())

    def start(
        self,
        command: Sequence[str],
        *,
        log: str,
        environment: Mapping[str, str] | None = None,
        instead_of: Daemon | None = None,
    ) -> None:
        """Start a program in its own session, its output appended to a log, and record it.

        Args:
            command: program and arguments.
            log: name of the log.
            environment: what is in it besides; by default what users of the lab need.
            instead_of: one that has ended, whose place in the record it takes.
        """
        # posix_spawn rather than Popen: nothing here waits for a daemon, it outlives this process.
        write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        process_id = os.posix_spawn(
            command[0],
            list(command),
            {**os.environ, **(environment or self.environment)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.logs / log), write, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
        ended = Daemon(Path(command[0]).name, process_id, -1)
        daemon = _process(process_id) or ended
        if instead_of is None:
            self.daemons.append(daemon)
        else:
            self.daemons[self.daemons.index(instead_of)] = daemon
        self._save()

    def wait(self, lacking: Callable[[], str | None]) -> None:
        """Wait for what was started.

        Args:
            lacking: says what is not as it should be yet, None when all is.

        Raises:
            LabError: a daemon ended, or not all is well in time; the others are killed.
        """
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        try:
            while (fault := lacking()) is not None:
                ended = [daemon.name for daemon in self.daemons if not is_alive(daemon)]
                if ended or time.monotonic() > deadline:
                    told = f"{ended[0]} ended at once" if ended else fault
                    raise LabError("\n".join([told, *map(_tail, sorted(self.logs.glob("*.log")))]))
                time.sleep(0.05)
        except LabError:
            kill(self.daemons)
            raise


def find_program(name: str, *, install_hint: str) -> str:
    """Return the path of a program, looking beside this Python first.

    Raises:
        LabError: if it is not installed; the message ends with `install_hint`.
    """
    beside_python = str(Path(sys.executable).parent)
    places = [beside_python, os.environ.get("PATH", os.defpath), *SYSTEM_DIRECTORIES]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise LabError(f"{name} is not installed. Install it with:\n  {install_hint}")
    return found


def free_ports(count: int, *, also_offset: int = 0) -> list[int]:
    """Return loopback ports that nothing listens on, below those the kernel hands out.

    Args:
        count: how many.
        also_offset: `port + also_offset` is free as well.
    """
    # The kernel's own choices for outgoing connections start at 32768 and would collide at random.
    candidates = SystemRandom().sample(range(17000, 32000), k=15000)
    free = (port for port in candidates if is_free(port) and is_free(port + also_offset))
    return list(islice(free, count))


def is_free(port: int) -> bool:
    """Whether nothing listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_alive(daemon: Daemon) -> bool:
    """Whether the recorded process still runs: same id, same name, same start."""
    # A daemon started by this very process stays a zombie until its status is read.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(daemon.process_id, os.WNOHANG)
    return _process(daemon.process_id) == daemon


def _process(process_id: int) -> Daemon | None:
    """The process of this id, None if there is none that runs."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in brackets and may itself hold brackets or spaces.
    head, _, tail = text.rpartition(")")
    state, *rest = tail.split()
    return None if state in "ZX" else Daemon(head.partition("(")[2], process_id, int(rest[18]))


def kill(daemons: Sequence[Daemon]) -> None:
    """Kill every recorded daemon that still runs: nothing that it would save is wanted again.

    Raises:
        LabError: if one survives.
    """
    for daemon in daemons:
        if is_alive(daemon):
            os.kill(daemon.process_id, signal.SIGKILL)
    deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
    while alive := [f"{each.name} ({each.process_id})" for each in daemons if is_alive(each)]:
        if time.monotonic() > deadline:
            raise LabError(f"still running after SIGKILL: {', '.join(alive)}")
        time.sleep(0.02)


@contextlib.contextmanager
def frozen(record: Record) -> Generator[None]:
    """Meanwhile the daemons of a lab are stopped (SIGSTOP): whoever asks them gets no answer."""
    daemons = [daemon for daemon in record.daemons if is_alive(daemon)]
    for daemon in daemons:
        os.kill(daemon.process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        for daemon in daemons:
            os.kill(daemon.process_id, signal.SIGCONT)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-NUM_LOG_LINES:]
    return "\n".join([f"--- end of {log}", *lines])
