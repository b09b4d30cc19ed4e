"""A directory of this host that keeps files from a store, shared by all its processes.

Files come in by a rename, whole and checked; a process reads them through descriptors, so that
another one may remove them at any time. What was used when stands in their access times. A full
disk is waited for: the least recently used files go, and where none may, the disk gets the patience
that a store gets.
"""

import contextlib
import fcntl
import glob
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Final, TypeVar

from train.errors import StorageError
from train.storage.config import StorageConfig
from train.storage.host_lock import FULL, host_lock
from train.storage.notices import notice
from train.storage.patience import StoppedError
from train.storage.stored_file import FaultyFileError, StoredFile

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_PARTIAL: Final = ".partial"
_LOCK_SUFFIX: Final = ".lock"
_MARGIN_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1
_IN_USE_SECONDS: Final = 1.0
"""For so long a file that came in or was read is not evicted from a full disk."""
_ABANDONED_SECONDS: Final = 86_400.0


class CacheDirectory:
    """The cached files of one directory of a store, below a root whose size may be limited.

    The limit is for all files below the root that came in this way. Beyond it the least recently
    used go, whichever process brought them; a running download is not counted.
    """

    def __init__(self, directory: Path, storage: StorageConfig) -> None:
        """Make the directory, and remove what dead processes left behind.

        Raises:
            StorageError: the directory cannot be written to.
        """
        self._directory = directory
        root = storage.cache_directory
        self._root = root if directory.is_relative_to(root) else directory
        self._limit_bytes = storage.cache_limit_bytes
        self._budget_seconds = storage.retry_budget_seconds
        # Whoever fetches gives up before those who wait for it do.
        self.patience_seconds = (
            storage.timeout_seconds + storage.retry_budget_seconds + _MARGIN_SECONDS
        )
        self._make()
        self._remove_leftovers()

    def lock(self, name: str, *, stopped: Event | None) -> contextlib.AbstractContextManager[float]:
        """Be the one process of the host that fetches a file; see `host_lock`."""
        path = self._directory / f"{name}{_LOCK_SUFFIX}"
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        return host_lock(
            path,
            patience_seconds=self.patience_seconds,
            waits_for=f"to fetch {name} into {self._directory}",
            progress=lambda: self._partial_bytes(name),
            stopped=stopped,
        )

    def holds(self, file: StoredFile) -> bool:
        """Whether a file seems to be there; `open` looks closer."""
        try:
            return (self._directory / file.name).stat().st_size == file.num_bytes
        except OSError:
            return False

    def open(self, file: StoredFile, *, check: bool, remove: bool = False) -> int | None:
        """A descriptor of a file that is there and as the index says; None if none is.

        Args:
            file: as the index promises it.
            check: look at its hash too, which reads all of it.
            remove: remove one that is not as the index says.
        """
        path = self._directory / file.name
        try:
            descriptor = file.open(path, check=check)
        except FaultyFileError as fault:
            if remove and path.exists():
                # The corpus was rebuilt under the same URL, or the cache's disk went bad.
                logger.warning("%s in the data cache %s and is fetched again", path, fault)
                path.unlink(missing_ok=True)
            return None
        touch(descriptor)
        return descriptor

    def land(self, file: StoredFile, *, stopped: Event | None) -> "Landing":
        """A place for a file that is on its way; `stopped` says that it is no longer wanted.

        Raises:
            StorageError: the cache cannot be written to.
        """
        token = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        partial = self._directory / _PARTIAL / f"{_flat(file.name)}.{token}.part"
        return Landing(file, partial, lambda work: self.with_room(work, file.num_bytes, stopped))

    def take(self, landing: "Landing") -> int:
        """Move what has landed to its place; the descriptor stays good whatever becomes of it."""

        def move() -> None:
            path = self._directory / landing.file.name
            if self._limit_bytes is None:
                landing.move(path)
                return
            with self._root_lock():
                files = sorted(self._files())
                total = sum(size for _, size, _ in files) + landing.file.num_bytes
                self._evict(files, total - self._limit_bytes)
                landing.move(path)

        landing.with_room(move)
        return os.dup(landing.descriptor)

    def make_room(self, wanted_bytes: int, *, idle_seconds: float) -> bool:
        """Evict from a full disk what nobody has used for a while, the oldest first.

        Such a file is emptied too: its readers, which may be other processes, notice and fetch it
        again, and the disk has the room at once.

        Returns:
            Whether there is more room than before, or enough.
        """
        status = os.statvfs(self._directory)
        missing_bytes = wanted_bytes - status.f_bavail * status.f_frsize
        if missing_bytes <= 0:
            return True
        with self._root_lock():
            latest_ns = time.time_ns() - int(idle_seconds * 1e9)
            idle = [file for file in sorted(self._files()) if file[0] <= latest_ns]
            return self._evict(idle, missing_bytes, empty=True) > 0

    def with_room(
        self, work: Callable[[], Result], wanted_bytes: int, stopped: Event | None
    ) -> Result:
        """Do something that needs room on the disk; while it is full, evict or wait.

        Raises:
            StorageError: there was none within the budget, or the disk fails.
            StoppedError: the file is no longer wanted.
        """
        stopped = stopped or Event()
        full_since: float | None = None
        while True:
            try:
                return work()
            except OSError as error:
                if error.errno not in FULL:
                    raise self.unusable(error, "write to") from error
                reason = error
            full_since = full_since or time.monotonic()
            waited = time.monotonic() - full_since
            if waited >= self._budget_seconds:
                raise StorageError(
                    f"The disk of the data cache {self._directory} is full, and nothing could be "
                    f"evicted for {waited:.0f} s: free space there, set storage.cache to another "
                    f"directory, or raise storage.retry_budget_seconds ({self._budget_seconds:g})"
                ) from reason
            if self.make_room(wanted_bytes, idle_seconds=_IN_USE_SECONDS):
                notice(
                    f"the disk of the data cache {self._directory} is full: files that were not "
                    "used lately make room, and are fetched again when needed; free space there, "
                    "or set storage.cache to another directory"
                )
                stopped.wait(0.01 if waited == 0 else _POLL_SECONDS)
            else:
                if waited > 2 * _IN_USE_SECONDS:  # until then what was just read becomes idle
                    notice(
                        f"waiting for room: the disk of the data cache {self._directory} is full "
                        f"(giving up {self._budget_seconds - waited:.0f} s from now)"
                    )
                stopped.wait(_POLL_SECONDS)
            if stopped.is_set():
                raise StoppedError

    def unusable(self, error: OSError, what: str) -> StorageError:
        """An error that says what the disk does not do, such as "write to", and the remedy."""
        return StorageError(
            f"Cannot {what} the data cache {self._directory} ({error.strerror or error}); set "
            "storage.cache to another directory"
        )

    def _make(self) -> None:
        probe = self._directory / _PARTIAL / f"{socket.gethostname()}.{secrets.token_hex(4)}.probe"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in FULL:
                raise self.unusable(error, "create") from error

    def _remove_leftovers(self) -> None:
        """Remove downloads whose process is gone; a living one holds a lock on its file."""
        host = f".{socket.gethostname()}."
        with contextlib.suppress(OSError):
            for path in (self._directory / _PARTIAL).iterdir():
                # The file system may not tell locks of other hosts; theirs are left for a day.
                with contextlib.suppress(OSError):
                    age_seconds = time.time() - path.stat().st_mtime
                    if host in path.name or age_seconds > _ABANDONED_SECONDS:
                        _remove_unless_locked(path)

    def _partial_bytes(self, name: str) -> int:
        """How much of a file is on its way: it grows while some process gets on with it."""
        with contextlib.suppress(OSError):
            partial = (self._directory / _PARTIAL).glob(f"{glob.escape(_flat(name))}.*.part")
            return sum(path.stat().st_size for path in partial)
        return -1

    def _root_lock(self) -> contextlib.AbstractContextManager[float]:
        return host_lock(
            self._root / f".cache{_LOCK_SUFFIX}",
            patience_seconds=self.patience_seconds,
            waits_for=f"to make room in {self._root}",
        )

    def _evict(
        self, files: list[tuple[int, int, Path]], excess_bytes: int, *, empty: bool = False
    ) -> int:
        """Remove the first ones until so many bytes are gone; how many are."""
        gone_bytes = 0
        for _, size, path in files:
            if gone_bytes >= excess_bytes:
                break
            if empty:
                with contextlib.suppress(OSError):
                    os.truncate(path, 0)
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}{_LOCK_SUFFIX}").unlink(missing_ok=True)
            gone_bytes += size
        return gone_bytes

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each cached file was used last, its size and its path."""
        for directory, subdirectories, names in os.walk(self._root):
            subdirectories[:] = [name for name in subdirectories if name != _PARTIAL]
            present = set(names)
            for name in names:
                # A lock beside it shows that it came from a store, and is not the user's own.
                if f"{name}{_LOCK_SUFFIX}" in present:
                    path = Path(directory, name)
                    with contextlib.suppress(OSError):
                        status = path.stat()
                        yield status.st_atime_ns, status.st_size, path


class Landing:
    """Takes the bytes of a file on its way into the cache.

    The partial file is locked while its process lives, so that others can tell it from a leftover.
    """

    def __init__(
        self, file: StoredFile, partial: Path, with_room: Callable[[Callable[[], object]], object]
    ) -> None:
        self.file = file
        self.num_bytes = 0
        self.with_room = with_room
        """Does something that needs room on the disk."""
        self._partial = partial
        with_room(self._create)

    def write(self, data: bytes, /) -> None:
        """Append.

        Raises:
            StorageError: the disk fails, or stays full.
            StoppedError: the file is no longer wanted.
        """
        rest = memoryview(data)

        def write() -> None:
            nonlocal rest
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]

        self.with_room(write)
        self.num_bytes += len(data)

    def restart(self) -> None:
        """Forget all."""
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self.num_bytes = 0

    def move(self, path: Path) -> None:
        """Give the file its place.

        Raises:
            OSError: that cannot be done.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._partial, path)
        # Dead as a download, but open for reading.
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Remove what has found no place."""
        os.close(self.descriptor)
        self._partial.unlink(missing_ok=True)

    def _create(self) -> None:
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.descriptor = os.open(self._partial, flags, 0o666)
            # Without locks, others take it for a leftover only after its end.
            with contextlib.suppress(OSError):
                fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            if os.fstat(self.descriptor).st_nlink:
                return
            # Another process took it for a leftover before it was locked.
            os.close(self.descriptor)


def touch(descriptor: int) -> None:
    """Note that a file was used now: in its access time, which the system itself may not keep."""
    with contextlib.suppress(OSError):  # another user's
        os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))


def _flat(name: str) -> str:
    return name.replace("/", "_")


def _remove_unless_locked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
