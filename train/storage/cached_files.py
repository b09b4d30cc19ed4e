"""The files of a corpus in object storage, brought into a cache on this host."""

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Final

from train.errors import DataError
from train.storage.cache import Cache
from train.storage.config import StorageConfig
from train.storage.object_store import MissingObjectError, ObjectStore, StoppedError
from train.storage.stored_file import StoredFile

logger = logging.getLogger(__name__)

_MARGIN_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 1.0


class CachedFiles:
    """Brings files of a corpus into a directory of this host, and reads them there.

    One process of the host fetches a file and the others wait for it. Each process checks a file
    when it first opens it, or on the way where it fetches the file itself.
    """

    def __init__(self, root: str, *, directory: Path, storage: StorageConfig) -> None:
        """Make the cache.

        Raises:
            DataError: it cannot be made, or the URL is of no known kind.
        """
        self.root = root
        self._remote = ObjectStore(
            root,
            timeout_seconds=storage.timeout_seconds,
            retry_budget_seconds=storage.retry_budget_seconds,
            endpoint_url=storage.endpoint_url,
        )
        self.cache = Cache(
            directory,
            root=storage.cache_directory,
            limit_bytes=storage.cache_limit_bytes,
            # Whoever fetches gives up before those who wait for it do.
            patience_seconds=storage.timeout_seconds
            + storage.retry_budget_seconds
            + _MARGIN_SECONDS,
        )
        self._max_ahead = storage.read_ahead_files
        self._checked: set[str] = set()
        self._ahead: dict[str, _Ahead] = {}
        self._failed: set[str] = set()
        self._lock = Lock()
        self._stopped = Event()

    def open(self, file: StoredFile) -> int:
        """A descriptor of a file that is as the index says.

        Raises:
            DataError: it is missing or damaged in the store, or could not be fetched in time.
        """
        with self._lock:
            ahead = self._ahead.get(file.name)
        if ahead is not None:
            ahead.done.wait()
            if ahead.error is not None:
                raise ahead.error
        descriptor = self._find(file)
        return self._bring(file, stopped=None) if descriptor is None else descriptor

    def read(self, name: str) -> bytes | None:
        """A small file, always fresh; None if there is none.

        Raises:
            DataError: it could not be fetched in time.
        """
        try:
            return self._remote.read(name)
        except MissingObjectError:
            return None

    def prefetch(self, files: Iterable[StoredFile]) -> None:
        """Begin to bring files into the cache, as many at once as there may be."""
        for file in files:
            with self._lock:
                if len(self._ahead) >= self._max_ahead or not self.cache.has_memory:
                    return
                known = file.name in self._ahead or file.name in self._failed
                if known or self.cache.holds(file):
                    continue
                ahead = self._ahead[file.name] = _Ahead()
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
        for ahead in running:
            ahead.done.wait(_CLOSE_SECONDS)
        self._stopped = Event()
        self.cache.close()

    def after_fork(self) -> None:
        """In a new process: threads of the old one are not here, nor will locks be released."""
        self._lock = Lock()
        self._ahead = {}
        self._stopped = Event()
        self.cache.after_fork()

    def _find(self, file: StoredFile, *, remove: bool = False) -> int | None:
        check = file.name not in self._checked
        descriptor = self.cache.open(file, check=check, remove=remove)
        if descriptor is not None:
            self._note_checked(file)
        return descriptor

    def _bring(self, file: StoredFile, *, stopped: Event | None) -> int:
        with self.cache.lock(file.name, stopped=stopped) as lock:
            # Another process may have brought it while this one waited.
            found = self._find(file, remove=True)
            if found is not None:
                return found
            landing = self.cache.land(file, lock)
            try:
                self._remote.fetch(
                    file.name, landing, stalled_seconds=lock.stalled_seconds, stopped=stopped
                )
                fault = landing.fault()
                if fault is not None:
                    raise self._error(file, fault)
                self._note_checked(file)
                return self.cache.take(landing)
            except MissingObjectError as error:
                raise self._error(file, "is missing") from error
            finally:
                landing.close()

    def _bring_ahead(self, file: StoredFile, ahead: "_Ahead", stopped: Event) -> None:
        try:
            descriptor = self._bring(file, stopped=stopped)
            if os.fstat(descriptor).st_nlink == 0:
                self.cache.keep_in_memory(file.name, descriptor)
            else:
                os.close(descriptor)
        except StoppedError:
            pass
        except BaseException as error:
            # Whoever waits for it gets it; otherwise it is tried once more when it is read.
            ahead.error = error
            self._failed.add(file.name)
        finally:
            with self._lock:
                self._ahead.pop(file.name, None)
            ahead.done.set()

    def _note_checked(self, file: StoredFile) -> None:
        if file.digest is None and file.name not in self._checked:
            logger.warning(
                "%s/%s is used unchecked: the index records no hash of it", self.root, file.name
            )
        self._checked.add(file.name)

    def _error(self, file: StoredFile, fault: str) -> DataError:
        return DataError(
            f"Shard {self.root}/{file.name} {fault}; upload it again, or build the corpus again."
        )


class _Ahead:
    """A file that a thread brings."""

    def __init__(self) -> None:
        self.done = Event()
        self.error: BaseException | None = None


def default_cache(url: str) -> Path:
    """Where the shards of a URL are kept on this host unless a place is named."""
    return StorageConfig().cache_directory / hashlib.sha256(url.encode()).hexdigest()[:16]
