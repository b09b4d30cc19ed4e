"""Daemons in a throw-away directory: started detached, recorded, and stopped by record alone.

A lab directory holds `lab.json` with every process that was started. Stopping signals a process
only if its name and its start time are still those recorded, so that a process id which has since
been given to another program is never touched.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from train.errors import UserError

RECORD_NAME = "lab.json"
# Debian keeps daemons where an ordinary user's PATH does not look.
SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
NUM_LOG_LINES = 15


class LabError(UserError):
    """A service of the lab cannot be started or used; the message says what to do."""


@dataclass(frozen=True)
class Daemon:
    """A started process, with what is needed to know it again."""

    name: str
    process_id: int
    start_ticks: int
    """Start time of the process in clock ticks since boot, field 22 of `/proc/PID/stat`."""


@dataclass(frozen=True)
class Record:
    """What runs in a lab directory, and the environment that programs need to use it."""

    service: str
    settings: dict[str, int]
    environment: dict[str, str]
    daemons: list[Daemon] = field(default_factory=list)

    def save(self, directory: Path) -> None:
        """Write the record, whole or not at all."""
        temporary = directory / f"{RECORD_NAME}.new"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        temporary.replace(directory / RECORD_NAME)

    @staticmethod
    def load(directory: Path) -> "Record | None":
        """Read the record of `directory`; None where no lab was ever started."""
        path = directory / RECORD_NAME
        if not path.exists():
            return None
        fields = json.loads(path.read_text())
        fields["daemons"] = [Daemon(**daemon) for daemon in fields["daemons"]]
        return Record(**fields)

    @property
    def is_running(self) -> bool:
        """Whether every recorded daemon is alive."""
        return bool(self.daemons) and all(is_alive(daemon) for daemon in self.daemons)


def export_lines(environment: Mapping[str, str]) -> str:
    """Return shell lines for `eval`, one `export NAME=VALUE` each."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())


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


def prepare_directory(directory: Path) -> None:
    """Empty a lab directory, or create it.

    Raises:
        LabError: if the directory holds files but no lab was ever started in it.
    """
    if directory.exists() and any(directory.iterdir()):
        if not (directory / RECORD_NAME).exists():
            raise LabError(f"{directory} holds files that are no lab's: choose another --directory")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)


def free_ports(count: int, *, also_offset: int = 0) -> list[int]:
    """Return loopback ports that nothing listens on, below those the kernel hands out.

    Args:
        count: how many.
        also_offset: if not 0, `port + also_offset` must be free as well.
    """
    ports: list[int] = []
    # The kernel's own choices for outgoing connections start at 32768 and would collide at random.
    candidates = list(range(17000, 32000))
    Random(os.urandom(8)).shuffle(candidates)
    for port in candidates:
        if is_free(port) and (not also_offset or is_free(port + also_offset)):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise LabError(f"fewer than {count} free ports between 17000 and 32000 on this machine")


def is_free(port: int) -> bool:
    """Whether nothing listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def start(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> Daemon:
    """Start a program in its own session, its output appended to `log`."""
    # posix_spawn rather than Popen: nothing here waits for a daemon, it outlives this process.
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    process_id = os.posix_spawn(
        command[0],
        list(command),
        {**os.environ, **(environment or {})},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), write, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    )
    status = _read_status(process_id)
    return Daemon(
        name=Path(command[0]).name, process_id=process_id, start_ticks=status[2] if status else -1
    )


def is_alive(daemon: Daemon) -> bool:
    """Whether the recorded process still runs: same id, same name, same start."""
    # A daemon started by this very process stays a zombie until its status is read.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(daemon.process_id, os.WNOHANG)
    status = _read_status(daemon.process_id)
    if status is None:
        return False
    name, state, start_ticks = status
    # The kernel cuts names at 15 characters.
    is_same = name == daemon.name[:15] and start_ticks == daemon.start_ticks
    return is_same and state not in "ZX"


def _read_status(process_id: int) -> tuple[str, str, int] | None:
    """Return (name, state, start in clock ticks) of a process, None if there is none."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in brackets and may itself hold brackets or spaces.
    name = text[text.index("(") + 1 : text.rindex(")")]
    rest = text[text.rindex(")") + 2 :].split()
    return name, rest[0], int(rest[19])


def stop(
    daemons: Sequence[Daemon], *, with_signal: signal.Signals, patience_seconds: float
) -> None:
    """Signal every recorded daemon that still runs; kill those that do not leave in time.

    Raises:
        LabError: if one survives SIGKILL.
    """
    for number, seconds in ((with_signal, patience_seconds), (signal.SIGKILL, 10.0)):
        remaining = [daemon for daemon in daemons if is_alive(daemon)]
        for daemon in remaining:
            os.kill(daemon.process_id, number)
        deadline = time.monotonic() + seconds
        while any(is_alive(daemon) for daemon in remaining):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
    alive = [f"{daemon.name} ({daemon.process_id})" for daemon in daemons if is_alive(daemon)]
    raise LabError(f"still running after SIGKILL: {', '.join(alive)}")


def log_tails(*logs: Path) -> str:
    """Return the last lines of each log, for an error message."""
    parts: list[str] = []
    for log in logs:
        if log.exists():
            lines = log.read_text(errors="replace").splitlines()[-NUM_LOG_LINES:]
            parts.append(f"--- end of {log}\n" + "\n".join(lines))
    return "\n".join(parts)
