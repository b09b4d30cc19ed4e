"""Leases: of all hosts, one process at a time may write to a directory or below a URL.

Who writes there keeps a file `.lock.N` in it, which says who it is, and writes it anew every few
seconds. The highest N counts. A newcomer that finds its process dead, or sees nobody write it for
some periods, creates N + 1, which only one of several can. No clocks of two hosts are compared, and
nothing is asked of a file system or a store but that a file is created once.
"""

import contextlib
import getpass
import logging
import os
import re
import secrets
import socket
import threading
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self

from pydantic import Field, ValidationError

from train.errors import InUseError
from train.storage.place import Place
from train.storage.record import Record

logger = logging.getLogger(__name__)

LEASE_PREFIX: Final = ".lock"
"""How the names of the files begin."""
RENEWED_EVERY_SECONDS: Final = 15.0
_BYTES_AT_MOST: Final = 1 << 16
_MISSED_PERIODS: Final = 4
_POLLS_A_PERIOD: Final = 10
_NAME: Final = re.compile(r"^\.lock\.(\d{1,18})$")
# Of a renewal that was cut short.
_LEFTOVER: Final = re.compile(r"^\.\.lock\.\d+\.tmp-\w+$")


class Holder(Record):
    """A process that holds a lease, as its file says.

    Attributes:
        id: no other lease has it.
        host: name of its host.
        pid: its number there.
        user: whose process it is.
        since: when it took the lease, by its own clock; for people.
        kernel: boot and process namespace, in which a pid means one process; empty if not known.
        started: when the process began, as its kernel counts.
        job: of Slurm.
        restarts: how often Slurm has requeued the job.
        renewed_every_seconds: how often the file is written anew.
        renewals: how often that was.
    """

    id: str
    host: str
    pid: int
    user: str
    since: str
    kernel: str = ""
    started: str = ""
    job: str = ""
    restarts: int = 0
    renewed_every_seconds: Annotated[float, Field(gt=0, le=60)]
    renewals: int = 0

    @classmethod
    def of_this_process(cls) -> Self:
        """Nobody has the lease yet."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            id=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            user=_user(),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            kernel=_kernel(),
            started=_started(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(restarts) if restarts.isdecimal() else 0,
            renewed_every_seconds=RENEWED_EVERY_SECONDS,
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"pid {self.pid} of {self.user} on {self.host} since {self.since}{job}"

    def lives(self, here: "Holder") -> bool | None:
        """Whether its process lives, None where that cannot be told from here.

        Args:
            here: this process.
        """
        if here.kernel and self.kernel == here.kernel:
            return _started(self.pid) == self.started
        if here.job and self.job == here.job and self.restarts < here.restarts:
            return False  # Slurm requeues a job when it has ended
        return None


class _Found(NamedTuple):
    """The file that counts: its number and what it holds, which is no holder if it is damaged."""

    number: int
    content: bytes
    holder: Holder | None

    @property
    def period_seconds(self) -> float:
        """How often it is written anew while its process lives."""
        return self.holder.renewed_every_seconds if self.holder else RENEWED_EVERY_SECONDS


class Lease(AbstractContextManager["Lease"]):
    """The right to write to a directory, which no other process has meanwhile.

    As a context it is given back at the end, if it was taken.
    """

    def __init__(self, directory: Place, *, instead: str) -> None:
        """Nothing is looked at yet.

        Args:
            directory: that is to be written to.
            instead: what a user may do who does not wait for another process, such as "choose
                another run_directory".
        """
        self.directory = directory
        self.fault: InUseError | None = None
        """Set once another process is seen to have taken the lease over."""
        self.instead = instead
        self._me = Holder.of_this_process()
        self._number: int | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def file(self) -> Place:
        """Where the lease lies, if it was taken."""
        return self._file(self._number or 1)

    def take(self) -> None:
        """Take the lease, unless this object has it; makes the directory.

        Where it cannot be told whether another process that had it lives, this waits until that is
        seen, a minute at most.

        Raises:
            InUseError: another process holds it.
            OSError: the directory cannot be written to.
        """
        while self._number is None:
            found = self._newest()
            if found is not None and self._lives(found):
                raise InUseError(
                    f"{self.directory} is in use by another process, "
                    f"{self._told(self._newest() or found)}: wait until it ends, or {self.instead}"
                )
            self._claim(1 if found is None else found.number + 1)

    def take_if_there(self) -> None:
        """Take the lease of a directory that exists; one that cannot be written is left alone.

        Raises:
            InUseError: another process holds it.
            StorageError: the store refuses, or does not answer.
        """
        directory = self.directory
        if directory.is_remote:
            is_there = directory.exists()
        else:
            is_there = os.path.isdir(directory) and os.access(directory, os.W_OK)
        if is_there:
            self.take()

    def check(self) -> None:
        """See that no other process has taken the lease over, as if this one had died.

        Raises:
            InUseError: one has; this process must write nothing more there.
            OSError: it cannot be seen.
        """
        self._check(self.directory)

    def release(self) -> None:
        """Give the lease back; the store may be away."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._number is not None:
            with contextlib.suppress(OSError, InUseError):
                self._check(self.directory.in_haste)
                self.file.in_haste.remove()
            self._number = None

    def _check(self, directory: Place) -> None:
        if self.fault is None and self._number is not None:
            found = self._newest(directory)
            # Where nothing is left, somebody has removed it, and another process may come.
            if found is not None and not self._is_mine(found):
                self.fault = InUseError(
                    f"{self.directory} was taken over by another process, {self._told(found)}, for "
                    "which this one looked dead: it stops, and writes nothing more there"
                )
        if self.fault is not None:
            raise self.fault

    def _is_mine(self, found: _Found) -> bool:
        assert self._number is not None
        if found.number != self._number:
            return found.number < self._number
        return found.holder is None or found.holder.id == self._me.id

    def _lives(self, found: _Found) -> bool:
        """Whether the process that has a file lives; it is watched where that cannot be told."""
        lives = None if found.holder is None else found.holder.lives(self._me)
        if lives is not None:
            return lives
        patience_seconds = _MISSED_PERIODS * found.period_seconds
        logger.warning(
            "%s was held by %s; waiting %.0f s to see whether that lives",
            *(self.directory, self._told(found), patience_seconds),
        )
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            time.sleep(found.period_seconds / _POLLS_A_PERIOD)
            if (newest := self._newest()) != found:
                return newest is not None  # it was given back
        return False

    def _claim(self, number: int) -> None:
        """Try to have the file with a number."""
        self._file(number).write_new(self._me.model_dump_json().encode())
        found = self._newest()
        # Asked, since an answer may have been lost, and a store may not know what "new" means.
        if found is None or found.holder is None or found.holder.id != self._me.id:
            return
        self._number = number
        for name in self.directory.names():
            if name != self.file.name and (_NAME.match(name) or _LEFTOVER.match(name)):
                with contextlib.suppress(OSError):
                    (self.directory / name).remove()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        directory, file = self.directory.in_haste, self.file.in_haste
        while not self._ended.wait(self._me.renewed_every_seconds):
            # A store that is away, or a full disk, is no reason to end: checkpoints will tell.
            with contextlib.suppress(OSError):
                try:
                    self._check(directory)
                except InUseError:
                    return
                renewals = self._me.renewals + 1
                self._me = self._me.model_copy(update={"renewals": renewals})
                file.write(self._me.model_dump_json().encode())

    def _newest(self, directory: Place | None = None) -> _Found | None:
        directory = directory or self.directory
        while True:
            named = map(_NAME.match, directory.names())
            number = max((int(match[1]) for match in named if match), default=None)
            if number is None:
                return None
            with contextlib.suppress(FileNotFoundError):  # given back meanwhile
                content = (directory / f"{LEASE_PREFIX}.{number}").read(limit_bytes=_BYTES_AT_MOST)
                return _Found(number, content, _parsed(content))

    def _file(self, number: int) -> Place:
        return self.directory / f"{LEASE_PREFIX}.{number}"

    def _told(self, found: _Found) -> str:
        return f"{found.holder or 'nobody knows whom'} (it has {self._file(found.number)})"


def _parsed(content: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(content)
    except ValidationError:
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


def _started(pid: int) -> str:
    """When a process began, which tells it from others of its number; empty for a dead one."""
    try:
        # The name before may hold anything, a bracket too.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
