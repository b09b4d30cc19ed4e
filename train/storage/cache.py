"""A directory of this host that keeps files from object storage, shared by all its processes.

Files come in by a rename, whole and checked; a process reads them through descriptors, so that
another one may remove them at any time. What was used when stands in their access times.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from pathlib import Path
from threading import Event, Lock
from typing import Final

from train.data.store.open_shard import touch
from train.errors import ConfigError, DataError
from train.storage.host_lock import HostLock, host_lock
from train.storage.landing import FULL, CacheLanding
from train.storage.stored_file import StoredFile

logger = logging.getLogger(__name__)

MAX_IN_MEMORY: Final = 8
"""Files that a process keeps in memory where the disk is full, until they are read."""
_PARTIAL: Final = ".partial"
_LOCK_SUFFIX: Final = ".lock"
_GIB: Final = 1 << 30
_IN_USE_SECONDS: Final = 60.0
_ABANDONED_SECONDS: Final = 86_400.0


class Cache:
    """The files of one corpus split, in a directory whose size may be limited.

    The limit is for all files below `root` that came in this way. Beyond it the least recently used
    go, whichever process brought them; a running download is not counted.
    """

    def __init__(
        self,
        directory: Path,
        *,
        root: Path,
        limit_bytes: int | None,
        patience_seconds: float,
    ) -> None:
        """Make the directory, and remove what dead processes left behind.

        Args:
            directory: of this split.
            root: the limit is for all that is below, if the directory is there too.
            limit_bytes: None is no limit.
            patience_seconds: longest wait for a process that holds a lock and shows no progress.

        Raises:
            DataError: the directory cannot be written to.
        """
        self._directory = directory
        self._root = root if directory.is_relative_to(root) else directory
        self._limit_bytes = limit_bytes
        self.patience_seconds = patience_seconds
        self._memory: OrderedDict[str, int] = OrderedDict()
        self._memory_lock = Lock()
        self._said_full = False
        self._make()
        self._remove_leftovers()

    def lock(
        self, name: str, *, stopped: Event | None
    ) -> contextlib.AbstractContextManager[HostLock]:
        """Be the one process of the host that fetches a file."""
        path = self._directory / f"{name}{_LOCK_SUFFIX}"
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        return host_lock(
            path,
            patience_seconds=self.patience_seconds,
            waits_for=f"to fetch {name} into {self._directory}",
            stopped=stopped,
        )

    def holds(self, file: StoredFile) -> bool:
        """Whether a file seems to be there; `open` looks closer."""
        if file.name in self._memory:
            return True
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
        with self._memory_lock:
            descriptor = self._memory.pop(file.name, None)
        if descriptor is not None:
            return descriptor
        path = self._directory / file.name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if check:
                fault = file.fault(descriptor)
            else:
                fault = file.size_fault(os.fstat(descriptor).st_size)
            if fault is None:
                touch(descriptor)
                return descriptor
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        os.close(descriptor)
        if remove:
            # The corpus was rebuilt under the same URL, or the cache's disk went bad.
            logger.warning("%s in the data cache %s and is fetched again", path, fault)
            path.unlink(missing_ok=True)
        return None

    def land(self, file: StoredFile, lock: HostLock) -> CacheLanding:
        """A place for a file that is on its way.

        Raises:
            DataError: the cache cannot be written to.
        """
        name = f"{file.name.replace('/', '_')}.{socket.gethostname()}.{os.getpid()}"
        return CacheLanding(
            file,
            partial=self._directory / _PARTIAL / f"{name}.{secrets.token_hex(4)}.part",
            beat=lock.beat,
            free=self._free,
            say_full=self._say_full,
        )

    def take(self, landing: CacheLanding) -> int:
        """Move what has landed to its place; the descriptor stays good whatever becomes of it."""
        if landing.is_in_memory:
            return landing.release()
        path = self._directory / landing.file.name
        try:
            if self._limit_bytes is None:
                landing.move(path)
            else:
                with self._root_lock():
                    self._evict(self._limit_bytes - landing.file.num_bytes)
                    landing.move(path)
        except OSError as error:
            if error.errno not in FULL:
                raise self._unwritable(error) from error
            # No room for a name: it is used while it is open.
            self._say_full()
        return landing.release()

    def keep_in_memory(self, name: str, descriptor: int) -> None:
        """Keep a file that has no place on the disk until it is opened, at most a few."""
        with self._memory_lock:
            self._memory[name] = descriptor
            while len(self._memory) > MAX_IN_MEMORY:
                os.close(self._memory.popitem(last=False)[1])

    @property
    def has_memory(self) -> bool:
        """Whether one more may be kept there without another being dropped."""
        return len(self._memory) < MAX_IN_MEMORY

    def close(self) -> None:
        """Drop what is in memory."""
        with self._memory_lock:
            while self._memory:
                os.close(self._memory.popitem()[1])

    def after_fork(self) -> None:
        """In a new process: locks that another thread held would stay so for ever."""
        self._memory_lock = Lock()

    def _make(self) -> None:
        probe = self._directory / _PARTIAL / f"{socket.gethostname()}.{secrets.token_hex(4)}.probe"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in FULL:
                raise DataError(
                    f"Cannot create the data cache {self._directory} ({error.strerror}); choose "
                    "another directory for it."
                ) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"Cannot write to the data cache {self._directory} ({error.strerror}); choose another "
            "directory for it."
        )

    def _remove_leftovers(self) -> None:
        """Remove downloads whose process is gone; a living one holds a lock on its file."""
        try:
            leftovers = list((self._directory / _PARTIAL).iterdir())
        except OSError:
            return
        host = f".{socket.gethostname()}."
        for path in leftovers:
            # The file system may not tell locks of other hosts; theirs are left alone for a day.
            with contextlib.suppress(OSError):
                age_seconds = time.time() - path.stat().st_mtime
                if host in path.name or age_seconds > _ABANDONED_SECONDS:
                    _remove_unless_locked(path)

    def _root_lock(self) -> contextlib.AbstractContextManager[HostLock]:
        return host_lock(
            self._root / f".cache{_LOCK_SUFFIX}",
            patience_seconds=self.patience_seconds,
            waits_for=f"to make room in {self._root}",
        )

    def _evict(self, limit_bytes: int) -> None:
        """Remove the least recently used until all that is below the root fits."""
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - limit_bytes
        for _, size, path in files:
            if excess <= 0:
                return
            _remove(path)
            excess -= size

    def _free(self, wanted_bytes: int) -> int:
        """Make room on a full disk; bytes removed.

        Only what nobody has read for a while: a file that is open somewhere stays on the disk, so
        that removing it gains nothing.
        """
        freed = 0
        with self._root_lock():
            latest_ns = time.time_ns() - int(_IN_USE_SECONDS * 1e9)
            for used_ns, size, path in sorted(self._files()):
                if freed >= wanted_bytes or used_ns > latest_ns:
                    break
                _remove(path)
                freed += size
        return freed

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

    def _say_full(self) -> None:
        if not self._said_full:
            self._said_full = True
            logger.warning(
                "The disk of the data cache %s is full: shards are kept in memory, a few at a "
                "time, and fetched again when needed. Free space there, or set storage.cache to "
                "another directory.",
                self._directory,
            )


def require_working_set(limit_bytes: int | None, *, working_set_bytes: int) -> None:
    """Check that a cache holds what is read at the same time.

    Args:
        limit_bytes: of the cache, None for no limit.
        working_set_bytes: shards of two shuffle windows, the one that is read and the next.

    Raises:
        ConfigError: it does not, so that every shard would be fetched again and again.
    """
    if limit_bytes is None or working_set_bytes <= limit_bytes:
        return
    needed = -(-working_set_bytes * 100 // _GIB) / 100
    raise ConfigError(
        f"storage.cache_gib: {limit_bytes / _GIB:.4g} GiB do not hold the shards of two shuffle "
        "windows, which would be fetched again and again: raise it to "
        f"{needed:g}, or lower data.shuffle_window"
    )


@contextlib.contextmanager
def _opened(path: Path) -> Generator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_unless_locked(path: Path) -> None:
    with _opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}{_LOCK_SUFFIX}").unlink(missing_ok=True)
