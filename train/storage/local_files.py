"""The files of a corpus in a directory of this host."""

import logging
import os
from pathlib import Path

from train.errors import DataError
from train.storage.stored_file import StoredFile

logger = logging.getLogger(__name__)


class LocalFiles:
    """Reads a corpus where it lies; each file is checked when this process first opens it."""

    def __init__(self, root: str) -> None:
        """Look at the directory.

        Raises:
            DataError: it is not there, is empty, or is none.
        """
        self.root = root
        self._directory = Path(root)
        self._checked: set[str] = set()
        if not self._directory.exists():
            hint = ""
            if self._directory.name == "validation" and self._directory.parent.is_dir():
                hint = " with a share of documents for validation (--validation)"
            raise DataError(
                f"There is no data directory {root}; build one{hint} with `python -m "
                "tools.corpus build` or `python -m tools.shards build`, or correct the path."
            )
        if not self._directory.is_dir():
            raise DataError(f"{root} is a file; give the directory that holds the shards.")
        if not any(self._directory.iterdir()):
            raise DataError(
                f"The data directory {root} is empty; build a corpus with `python -m "
                "tools.corpus build`."
            )

    def open(self, file: StoredFile) -> int:
        """A descriptor of a file that is as the index says.

        Raises:
            DataError: it is missing, cut short or damaged.
        """
        try:
            descriptor = os.open(self._directory / file.name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._error(file, "is missing") from None
        except OSError as error:
            raise self._error(file, f"cannot be read ({error.strerror})") from error
        if file.name in self._checked:
            return descriptor
        try:
            fault = file.fault(descriptor)
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault is not None:
            os.close(descriptor)
            raise self._error(file, fault)
        if file.digest is None:
            logger.warning(
                "%s/%s is used unchecked: the index records no hash of it", self.root, file.name
            )
        self._checked.add(file.name)
        return descriptor

    def read(self, name: str) -> bytes | None:
        """A small file; None if there is none.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"Cannot read {self.root}/{name}: {error.strerror}.") from error

    def close(self) -> None:
        """Nothing is held."""

    def after_fork(self) -> None:
        """Nothing is shared."""

    def _error(self, file: StoredFile, fault: str) -> DataError:
        return DataError(
            f"Shard {self.root}/{file.name} {fault}; copy it again from where the corpus came "
            "from, or build the corpus again."
        )
