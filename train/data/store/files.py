"""The files of a corpus: read where they lie or through a cache, and checked when first opened."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from train.errors import DataError, StorageError
from train.storage.bucket import StorePlace
from train.storage.cache import Cache, default_cache
from train.storage.place import Place
from train.storage.stored_file import FaultyFileError, StoredFile

logger = logging.getLogger(__name__)


class CorpusFiles:
    """Opens the files of a directory of shards; whatever is wrong with one names it."""

    def __init__(self, root: Place, cache: Path | None) -> None:
        """Look at the directory, or make the cache.

        Args:
            root: of the shards.
            cache: where remote files are kept; None is a directory named after the URL.

        Raises:
            DataError: there is no such directory, or the cache cannot be made.
        """
        self.root = root
        self._checked: set[str] = set()
        self.cache: Cache | None = None
        if not isinstance(root, StorePlace):
            _require_directory(root)
            return
        try:
            self.cache = Cache(root, cache or default_cache(str(root)), self._warn_unchecked)
        except StorageError as error:
            raise DataError(str(error)) from error

    def open(self, file: StoredFile) -> int:
        """A descriptor of a file that is as the index says.

        Raises:
            DataError: it is missing or damaged, or could not be fetched in time.
        """
        try:
            return self._open_here(file) if self.cache is None else self.cache.open(file)
        except FaultyFileError as error:
            again = "copy it again from where the corpus came from"
            again = again if self.cache is None else "upload it again"
            raise DataError(
                f"Shard {self.root / file.name} {error}; {again}, or build the corpus again."
            ) from error
        except StorageError as error:
            raise DataError(str(error)) from error

    def read(self, name: str) -> bytes | None:
        """A small file, always fresh; None if there is none.

        Raises:
            DataError: it could not be read in time.
        """
        try:
            return (self.root / name).read()
        except FileNotFoundError:
            return None
        except StorageError as error:
            raise DataError(str(error)) from error
        except OSError as error:
            raise DataError(f"Cannot read {self.root / name}: {error.strerror}.") from error

    def prefetch(self, files: Iterable[StoredFile]) -> None:
        """Begin to bring remote files into the cache, as many at once as there may be."""
        if self.cache is not None:
            self.cache.prefetch(files)

    def close(self) -> None:
        """Stop reading ahead."""
        if self.cache is not None:
            self.cache.close()

    def after_fork(self) -> None:
        """In a new process: nothing of the old one's threads is here."""
        if self.cache is not None:
            self.cache.after_fork()

    def _open_here(self, file: StoredFile) -> int:
        try:
            descriptor = os.open((self.root / file.name).path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FaultyFileError("is missing") from None
        except OSError as error:
            raise FaultyFileError(f"cannot be read ({error.strerror})") from error
        if file.name in self._checked:
            return descriptor
        try:
            fault = file.fault(descriptor)
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault is not None:
            os.close(descriptor)
            raise FaultyFileError(fault)
        if file.digest is None:
            self._warn_unchecked(file)
        self._checked.add(file.name)
        return descriptor

    def _warn_unchecked(self, file: StoredFile) -> None:
        logger.warning(
            "%s is used unchecked: the index records no hash of it", self.root / file.name
        )


def _require_directory(root: Place) -> None:
    directory = Path(root.path)
    if not directory.exists():
        hint = ""
        if directory.name == "validation" and directory.parent.is_dir():
            hint = " with a share of documents for validation (--validation)"
        raise DataError(
            f"There is no data directory {root}; build one{hint} with `python -m "
            "tools.corpus build`, or correct the path."
        )
    if not directory.is_dir():
        raise DataError(f"{root} is a file; give the directory that holds the shards.")
    if not any(directory.iterdir()):
        raise DataError(
            f"The data directory {root} is empty; build a corpus with `python -m "
            "tools.corpus build`."
        )
