"""The files of a corpus in object storage, kept in a cache on this host."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Generator
from pathlib import Path

import filelock

from train.data.object_store import MissingObjectError, ObjectStore
from train.data.stored_file import StoredFile
from train.errors import DataError

logger = logging.getLogger(__name__)


class CachedFiles:
    """Brings files of a corpus into a directory of this host, and reads them there."""

    def __init__(self, root: str, *, directory: Path, timeout_seconds: float, retries: int) -> None:
        """Make the cache.

        Raises:
            DataError: it cannot be made, or the URL is of no known kind.
        """
        self.root = root
        self._remote = ObjectStore(root, timeout_seconds=timeout_seconds, retries=retries)
        self._directory = directory
        self._patience_seconds = timeout_seconds * (retries + 1) + 30.0
        self._checked: set[str] = set()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"Cannot create the data cache {self._directory} ({error.strerror}); choose "
                "another directory for it."
            ) from error

    def open(self, file: StoredFile) -> int:
        """A descriptor of a file that is as the index says.

        Raises:
            DataError: it is missing or damaged in the store, or could not be fetched in time.
        """
        path = self._directory / file.name
        with self._lock(file.name):
            if path.exists():
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if file.name in self._checked or file.fault(descriptor) is None:
                    self._checked.add(file.name)
                    return descriptor
                os.close(descriptor)
                # The corpus was rebuilt under the same URL, or the cache's disk went bad.
                logger.warning("%s is stale or damaged and is fetched again", path)
                path.unlink()
            try:
                self._remote.fetch(file.name, path)
            except MissingObjectError as error:
                raise DataError(
                    f"Shard {self.root}/{file.name} is missing; upload it again, or build the "
                    "corpus again."
                ) from error
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            fault = file.fault(descriptor)
            if fault is not None:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                raise DataError(
                    f"Shard {self.root}/{file.name} {fault}; upload it again, or build the corpus "
                    "again."
                )
            self._checked.add(file.name)
            return descriptor

    def read(self, name: str) -> bytes | None:
        """A small file, always fresh; None if there is none.

        Raises:
            DataError: it could not be fetched in time.
        """
        path = self._directory / name
        with self._lock(name):
            fresh = path.with_name(f"{path.name}.{os.getpid()}.fresh")
            try:
                self._remote.fetch(name, fresh)
                return fresh.read_bytes()
            except MissingObjectError:
                return None
            finally:
                fresh.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Generator[None]:
        path = self._directory / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(path, timeout=self._patience_seconds):
                yield
        except filelock.Timeout as error:
            raise DataError(
                f"Waited {self._patience_seconds:g} s for another process to fetch "
                f"{self.root}/{name}; see whether it hangs, or give this run its own cache."
            ) from error


def default_cache(url: str) -> Path:
    """Where the shards of a URL are kept on this host unless a place is named."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "semicausal" / "shards" / hashlib.sha256(url.encode()).hexdigest()[:16]
