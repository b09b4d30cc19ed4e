"""Who holds a lease: a process, as it writes itself down for those of other hosts."""

import getpass
import os
import re
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field

from train.storage.record import Record

MISSED_PERIODS: Final = 4
"""In which a lease was not renewed: then nobody holds it."""
_SAID_AT_MOST: Final = 200


class Holder(Record):
    """A process that holds a lease, as its file says.

    Attributes:
        id: no other lease has it.
        place: what the lease is for, by its real name; empty if not known.
        host: name of its host.
        pid: its number there.
        user: whose process it is.
        since: when it took the lease, by its own clock; for people.
        kernel: boot and process namespace, in which a pid means one process; empty if not known.
        started: when the process began, as its kernel counts.
        job: of Slurm.
        cluster: of the job; others count their jobs from the same numbers.
        restarts: how often Slurm has requeued the job.
        renewed_every_seconds: how often the file is written anew.
        renewals: how often that was.
    """

    id: str
    place: str = ""
    host: str
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    user: str
    since: str
    kernel: str = ""
    started: str = ""
    job: str = ""
    cluster: str = ""
    restarts: int = 0
    renewed_every_seconds: Annotated[float, Field(gt=0, le=60)]
    renewals: int = 0

    @classmethod
    def of_this_process(cls, place: str = "", *, renewed_every_seconds: float) -> Self:
        """Nobody has the lease yet."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            id=secrets.token_hex(8),
            place=_sayable(place),
            host=_sayable(socket.gethostname()),
            pid=os.getpid(),
            user=_sayable(_user()),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            kernel=_kernel(),
            started=_started(os.getpid()) or "",
            job=_sayable(os.environ.get("SLURM_JOB_ID", "")),
            cluster=_sayable(os.environ.get("SLURM_CLUSTER_NAME", "")),
            restarts=int(restarts) if re.fullmatch("[0-9]{1,9}", restarts) else 0,
            renewed_every_seconds=renewed_every_seconds,
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        job += f" of cluster {self.cluster}" if self.job and self.cluster else ""
        return f"pid {self.pid} of {self.user} on {self.host} since {self.since}{job}"

    @property
    def patience_seconds(self) -> float:
        """How long its lease counts after it was last written."""
        return MISSED_PERIODS * self.renewed_every_seconds

    def lives(self, here: "Holder") -> bool | None:
        """Whether its process lives, None where that cannot be told from here.

        Args:
            here: this process.
        """
        if here.kernel and self.kernel == here.kernel:
            lives = _lives(self.pid, self.started)
            # It may be a copy of what a living process writes to elsewhere.
            return None if lives and self.place not in ("", here.place) else lives
        is_mine = here.job and (self.job, self.cluster) == (here.job, here.cluster)
        if is_mine and self.restarts < here.restarts:
            return False  # Slurm requeues a job when it has ended
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _kernel() -> str:
    """What a pid is unique in, empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _sayable(text: str) -> str:
    """What of a text may stand in a file and in a sentence."""
    return "".join(char if char.isprintable() else "?" for char in text[:_SAID_AT_MOST])


def _lives(pid: int, started: str) -> bool | None:
    """Whether a process of this kernel lives, None where that is hidden from this user."""
    now = _started(pid)
    if now is not None and started:
        return now == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return None


def _started(pid: int) -> str | None:
    """When a process began, which tells it from others of its number; empty for a dead one.

    None where the system does not say, since it is gone or another user's.
    """
    try:
        # The name before may hold anything, a bracket too.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
