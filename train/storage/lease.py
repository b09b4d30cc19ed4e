"""Leases: of all hosts, one process at a time may write to a directory or below a URL.

Who writes there keeps a file `.lock.N` in it, which says who it is, and writes it anew every few
seconds. The highest N counts. A newcomer that finds its process dead, or sees nobody write it for
some periods, creates N + 1, which only one of several can. No clocks of two hosts are compared, and
nothing is asked of a file system or a store but that a file is created once. Who is done removes
the file; who slept for so long that others were there meanwhile finds its own one gone.
"""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from pydantic import ValidationError

from train.errors import InUseError, StorageError
from train.storage.holder import MISSED_PERIODS, Holder
from train.storage.place import Place

logger = logging.getLogger(__name__)

LEASE_PREFIXES: Final = (".lock", "..lock.")
"""How the names of the files begin, and of those that were not renewed to the end."""
RENEWED_EVERY_SECONDS: Final = 15.0
_GIVEN_BACK_WITHIN_SECONDS: Final = 10.0
_BYTES_AT_MOST: Final = 1 << 16
_POLLS_A_PERIOD: Final = 10
_READ_AT_MOST: Final = 5
_NAME: Final = re.compile(r"^\.lock\.([1-9]\d{0,8})$")
# Of a renewal that was cut short.
_LEFTOVER: Final = re.compile(r"^\.\.lock\.([1-9]\d{0,8})\.tmp-\w+$")


class _Found(NamedTuple):
    """The file that counts: its number and what it holds, which is no holder if it is damaged."""

    number: int
    content: bytes
    holder: Holder | None

    @property
    def period_seconds(self) -> float:
        """How often it is written anew while its process lives."""
        return self.holder.renewed_every_seconds if self.holder else RENEWED_EVERY_SECONDS

    @property
    def patience_seconds(self) -> float:
        """How long it counts after it was last written."""
        return MISSED_PERIODS * self.period_seconds


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
        self.real_name = str(directory) if directory.is_remote else os.path.realpath(directory)
        """Of the directory, whatever links lead to it."""
        self._me = Holder.of_this_process(
            self.real_name, renewed_every_seconds=RENEWED_EVERY_SECONDS
        )
        self._number: int | None = None
        self.renewed_at = 0.0
        """When its file was last written, by a clock that goes on while this host sleeps."""
        self._watched: _Found | None = None
        self._watched_until = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def file(self) -> Place:
        """Where the lease lies, if it was taken."""
        return self._file(self.number)

    @property
    def number(self) -> int:
        """Which of those that took it from one another this one is, from 1, if it was taken."""
        return self._number or 1

    @property
    def _poll_seconds(self) -> float:
        period_seconds = self._watched.period_seconds if self._watched else RENEWED_EVERY_SECONDS
        return period_seconds / _POLLS_A_PERIOD

    def take(self) -> None:
        """Take the lease, unless this object has it; makes the directory.

        Where it cannot be told whether another process that had it lives, this waits until that is
        seen, a minute at most.

        Raises:
            InUseError: another process holds it.
            OSError: the directory cannot be written to.
        """
        _take([self])

    @property
    def is_there(self) -> bool:
        """Whether the directory exists, and may be written to as far as that can be seen.

        Raises:
            StorageError: the store refuses, or does not answer.
        """
        directory = self.directory
        if directory.is_remote:
            return directory.exists()
        return os.path.isdir(directory) and os.access(directory, os.W_OK)

    def check(self) -> None:
        """See that no other process has taken the lease over, as if this one had died.

        Raises:
            InUseError: one has; this process must write nothing more there.
            OSError: it cannot be seen.
        """
        self._check(self.directory)

    def release(self) -> None:
        """Give the lease back; where the store is away, it is not waited for."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join(_GIVEN_BACK_WITHIN_SECONDS)
        self._number = self._thread = None

    def _attempt(self) -> bool:
        """Take the lease, unless somebody has it who may live; whether this object has it now.

        Raises:
            InUseError: somebody lives who has it.
            OSError: the directory cannot be read or written to.
        """
        if self._number is None:
            found = self._newest()
            if found is None or self._is_over(found):
                self._claim(1 if found is None else found.number + 1)
        return self._number is not None

    def _is_over(self, found: _Found) -> bool:
        """Whether the process that had it is done or dead, as far as that is known by now."""
        lives = None if found.holder is None else found.holder.lives(self._me)
        if lives is None and self._watched is None:
            patience_seconds = found.patience_seconds
            self._watched, self._watched_until = found, time.monotonic() + patience_seconds
            logger.warning(
                "%s was held by %s; waiting %.0f s to see whether that lives",
                *(self.directory, self._told(found), patience_seconds),
            )
        elif lives is None:
            is_seen_to_live = found != self._watched
            lives = is_seen_to_live or (None if time.monotonic() < self._watched_until else False)
        if lives:
            raise InUseError(
                f"{self.directory} is in use by another process, {self._told(found)}, until it "
                f"ends or has not renewed that for {found.patience_seconds:.0f} s: wait until it "
                f"ends, or {self.instead}"
            )
        return lives is False

    def _claim(self, number: int) -> None:
        """Try to have the file with a number."""
        file = self._file(number)
        if not _NAME.match(file.name):
            raise StorageError(f"{self._file(number - 1)} was left by no process: remove it")
        file.write_new(self._me.model_dump_json().encode())
        found = self._newest()
        # Asked, since an answer may have been lost, and a store may not know what "new" means.
        if found is None or found.holder is None or found.holder.id != self._me.id:
            return
        self._number = number
        self.renewed_at = _awake_or_asleep_seconds()
        for name in self.directory.names():
            match = _NAME.match(name) or _LEFTOVER.match(name)
            if match is not None and int(match[1]) < number:
                with contextlib.suppress(OSError):
                    (self.directory / name).remove()
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=(number, self._ended), name="lease", daemon=True
        )
        self._thread.start()

    def _keep(self, number: int, ended: threading.Event) -> None:
        """Renew the lease until it is given back."""
        directory, file = self.directory.in_haste, self._file(number).in_haste
        has_warned = is_over = False
        while not is_over:
            is_over = ended.wait(self._me.renewed_every_seconds)
            try:
                self._check(directory)
                if is_over:
                    file.remove()
                    return
                renewals = self._me.renewals + 1
                self._me = self._me.model_copy(update={"renewals": renewals})
                file.write(self._me.model_dump_json().encode())
                self.renewed_at = _awake_or_asleep_seconds()
            except InUseError:
                return
            except OSError:
                pass  # a store that is away, or a full disk, ends nothing: checkpoints will tell
            except Exception as error:
                if not has_warned:
                    logger.warning("%s cannot be renewed: %r; it is tried again", file, error)
                has_warned = True

    def _check(self, directory: Place) -> None:
        if self.fault is None and self._number is not None:
            found = self._newest(directory)
            slept_seconds = _awake_or_asleep_seconds() - self.renewed_at
            if found is None and slept_seconds < MISSED_PERIODS * self._me.renewed_every_seconds:
                return  # nobody was here: the file was removed, and is written again
            if found is None:
                self.fault = InUseError(
                    f"{self.file} is gone, by which {self.directory} was this process's: another "
                    "one has been there since, or somebody has removed it, so this one stops, and "
                    "writes nothing more there; start it again"
                )
            elif found.number != self._number or not self._may_be_mine(found):
                self.fault = InUseError(
                    f"{self.directory} was taken over by another process, {self._told(found)}, for "
                    "which this one looked dead: it stops, and writes nothing more there"
                )
        if self.fault is not None:
            raise self.fault

    def _may_be_mine(self, found: _Found) -> bool:
        return found.holder is None or found.holder.id == self._me.id

    def _newest(self, directory: Place | None = None) -> _Found | None:
        directory = directory or self.directory
        number = 0
        for _ in range(_READ_AT_MOST):
            named = map(_NAME.match, directory.names())
            number = max((int(match[1]) for match in named if match), default=0)
            if not number:
                return None
            with contextlib.suppress(FileNotFoundError):  # a newer one has come meanwhile
                content = (directory / f".lock.{number}").read(limit_bytes=_BYTES_AT_MOST)
                return _Found(number, content, _parsed(content))
        raise StorageError(
            f"{self._file(number)} is no file, or goes as fast as it comes: remove it"
        )

    def _file(self, number: int) -> Place:
        return self.directory / f".lock.{number}"

    def _told(self, found: _Found) -> str:
        return f"{found.holder or 'nobody knows whom'} (it has {self._file(found.number)})"


def take_those_there(leases: Sequence[Lease]) -> None:
    """Take the leases of directories that exist; those that may not be written are left alone.

    All that have to be watched are watched at the same time.

    Raises:
        InUseError: another process holds one.
        StorageError: the store refuses, or does not answer.
    """
    there = [lease for lease in leases if lease.is_there]
    with contextlib.suppress(PermissionError):
        _take(there)


def held_by(directory: Place) -> tuple[Holder | None, bool | None]:
    """Who holds a directory, for those that only look.

    Returns:
        The holder, and whether it lives: None where that cannot be told at once. Both None where
        nobody holds it.

    Raises:
        OSError: the directory cannot be read.
    """
    lease = Lease(directory, instead="")
    try:
        found = lease._newest()
    except FileNotFoundError:
        return None, None
    if found is None or found.holder is None:
        return None, None
    return found.holder, found.holder.lives(lease._me)


def _take(leases: Sequence[Lease]) -> None:
    for lease in leases:
        lease._watched = None
    while waiting := [lease for lease in leases if not lease._attempt()]:
        time.sleep(min(lease._poll_seconds for lease in waiting))


def _awake_or_asleep_seconds() -> float:
    """A clock of this host that goes on while the host, or this process, sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _parsed(content: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(content)
    except ValidationError:
        return None
