"""Files of a place, read where they lie or from a cache on this host, and checked."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Final

from train.errors import ConfigError, StorageError
from train.storage.bucket import StorePlace
from train.storage.cache_directory import CacheDirectory
from train.storage.config import StorageConfig
from train.storage.diagnosis import MissingError
from train.storage.patience import StoppedError
from train.storage.place import Place
from train.storage.stored_file import FaultyFileError, StoredFile

_GIB: Final = 1 << 30
_CLOSE_SECONDS: Final = 1.0
_LONG_UNUSED_SECONDS: Final = 60.0


class CheckedFiles:
    """Opens the files of a corpus, each checked by a process when it first opens it.

    Those of a store are brought into a directory of this host: one process fetches a file and
    checks it, and the others wait for it.
    """

    def __init__(self, root: Place, directory: Path | None):
        """Make the directory.

        Args:
            root: where the files lie.
            directory: for those of this root in a store; None is one named after the URL.

        Raises:
            StorageError: it cannot be made.
        """
        self._root = root
        self.directory: CacheDirectory | None = None
        if root.is_remote:
            self.directory = CacheDirectory(directory or default_cache(str(root)), root.storage)
        self._checked: set[str] = set()
        self._ahead: dict[str, Future[None]] = {}
        self._failed: set[str] = set()
        self._lock = Lock()
        self._stopped = Event()

    def open(self, file: StoredFile) -> int:
        """A descriptor of a file that is as the index says.

        Raises:
            StorageError: it is missing or damaged, or could not be fetched in time.
        """
        try:
            with self._lock:
                ahead = self._ahead.get(file.name)
            if ahead is not None:
                ahead.result()
            descriptor = self._find(file)
            return self._bring(file, stopped=None) if descriptor is None else descriptor
        except FaultyFileError as error:
            again = "upload it again"
            if not self._root.is_remote:
                again = "copy it again from where the corpus came from"
            raise StorageError(
                f"Shard {self._root / file.name} {error}; {again}, or build the corpus again."
            ) from error

    def prefetch(self, files: Iterable[StoredFile]) -> None:
        """Begin to bring files into the cache, as many at once as there may be."""
        if self.directory is None:
            return
        for file in files:
            with self._lock:
                if len(self._ahead) >= self._root.storage.read_ahead_files:
                    return
                known = file.name in self._ahead or file.name in self._failed
                if known or self.directory.holds(file):
                    continue
                room = self.directory.make_room(file.num_bytes, idle_seconds=_LONG_UNUSED_SECONDS)
                if not room:
                    return  # what is read now must not wait for what is read later
                ahead = self._ahead[file.name] = Future[None]()
            # A daemon: a store that hangs must not keep the process from ending.
            Thread(
                target=self._bring_ahead,
                args=(file, ahead, self._stopped),
                name="read-ahead",
                daemon=True,
            ).start()

    def close(self) -> None:
        """Stop reading ahead."""
        self._stopped.set()
        with self._lock:
            running = list(self._ahead.values())
        wait(running, timeout=_CLOSE_SECONDS)
        self._stopped = Event()

    def _find(self, file: StoredFile, *, remove: bool = False) -> int | None:
        check = file.name not in self._checked
        if self.directory is None:
            descriptor = file.open(Path(self._root / file.name), check=check)
        else:
            descriptor = self.directory.open(file, check=check, remove=remove)
        if descriptor is not None:
            self._checked.add(file.name)
        return descriptor

    def _bring(self, file: StoredFile, *, stopped: Event | None) -> int:
        assert isinstance(self._root, StorePlace), "files of this host are found"
        assert self.directory is not None
        with self.directory.lock(file.name, stopped=stopped) as stalled_seconds:
            # Another process may have brought it while this one waited.
            found = self._find(file, remove=True)
            if found is not None:
                return found
            landing = self.directory.land(file, stopped=stopped)
            try:
                (self._root / file.name).fetch(
                    landing, stalled_seconds=stalled_seconds, stopped=stopped
                )
                try:
                    fault = file.fault(landing.descriptor)
                except OSError as error:
                    raise self.directory.unusable(error, f"read {file.name} back from") from error
                if fault is not None:
                    raise FaultyFileError(fault)
                self._checked.add(file.name)
                return self.directory.take(landing)
            except MissingError as error:
                raise FaultyFileError("is missing") from error
            finally:
                landing.close()

    def _bring_ahead(self, file: StoredFile, ahead: Future[None], stopped: Event) -> None:
        failed: BaseException | None = None
        try:
            with contextlib.suppress(StoppedError):
                os.close(self._bring(file, stopped=stopped))
        except BaseException as error:
            failed = error
            self._failed.add(file.name)
        with self._lock:
            del self._ahead[file.name]
        if failed is None:
            ahead.set_result(None)
        else:
            # Whoever waits for it gets it; otherwise it is tried once more when it is read.
            ahead.set_exception(failed)


def default_cache(name: str) -> Path:
    """Where what belongs to a URL or another name is kept on this host."""
    return StorageConfig().cache_directory / hashlib.sha256(name.encode()).hexdigest()[:16]


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
