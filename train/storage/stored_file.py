"""A file as an index promises it, and whether what is there keeps the promise."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

import xxhash
from typing_extensions import TypedDict

from train.errors import StorageError
from train.storage.local import open_file
from train.storage.record import Count

HASHERS: Final[Mapping[str, Callable[[], Any]]] = {
    "xxh3_64": xxhash.xxh3_64,
    "xxh3_128": xxhash.xxh3_128,
    "xxh128": xxhash.xxh128,
    "xxh64": xxhash.xxh64,
    "xxh32": xxhash.xxh32,
} | {
    name: partial(hashlib.new, name)
    for name in sorted(hashlib.algorithms_guaranteed)
    if not name.startswith("shake_")
}
"""The hashes that mosaicml-streaming may have written, the fastest first."""
_IS_PLAIN: Final = re.compile(r"[\w-]+(\.[\w-]+)*").fullmatch
"""As nearly all names are, of which there may be a million."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a corpus, as listed in its index.

    Attributes:
        name: path below the corpus directory; stays inside it.
        num_bytes: its size.
        digest: a hash algorithm and the hash in hexadecimal.
    """

    name: str
    num_bytes: int
    digest: tuple[str, str]

    def open(self, path: Path, *, check: bool) -> int:
        """A descriptor of the file as it lies on this host.

        Args:
            path: where.
            check: look at its hash too, which reads all of it.

        Raises:
            FaultyFileError: it is not there, or not as the index says.
        """
        try:
            descriptor = open_file(path)
        except FileNotFoundError:
            raise FaultyFileError("is missing") from None
        except StorageError as error:
            raise FaultyFileError(f"cannot be read ({error})") from error
        except OSError as error:
            raise FaultyFileError(f"cannot be read ({error.strerror})") from error
        try:
            fault = self.fault(descriptor, check=check)
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault is not None:
            os.close(descriptor)
            raise FaultyFileError(fault)
        return descriptor

    def fault(self, descriptor: int, *, check: bool = True) -> str | None:
        """What is wrong with an open file, as the end of a sentence; None if nothing is.

        Args:
            descriptor: of the file.
            check: look at its hash too, which reads all of it.

        Raises:
            OSError: it cannot be read.
        """
        num_bytes = os.fstat(descriptor).st_size
        if num_bytes != self.num_bytes:
            return f"has {num_bytes:,} bytes where the index says {self.num_bytes:,}"
        if not check:
            return None
        name, wanted = self.digest
        with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
            file.seek(0)
            found = hashlib.file_digest(file, cast("Callable[[], Any]", HASHERS[name])).hexdigest()
        if found == wanted:
            return None
        return f"is damaged: its {name} hash is not the one in the index"


class FileEntry(TypedDict):
    """A file as a document lists it."""

    basename: str
    bytes: Count
    hashes: dict[str, str]


def stored_file(entry: FileEntry) -> StoredFile:
    """The file that an entry lists.

    Raises:
        ValueError: its path leaves the directory, or nothing vouches for its content.
    """
    name, hashes = entry["basename"], entry["hashes"]
    if not _IS_PLAIN(name) and _leaves(name):
        raise ValueError(f"the shard path {name!r} leaves the corpus directory")
    known = next((known for known in HASHERS if known in hashes), None)
    if known is None:
        raise ValueError(f"it has no hash of {name} that is known here, such as sha256 or xxh64")
    return StoredFile(name, entry["bytes"], (known, hashes[known]))


def _leaves(name: str) -> bool:
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or not path.parts
    return outside or "\\" in name or "\0" in name


class FaultyFileError(StorageError):
    """A file is not as its index promises; the text says how, as the end of a sentence."""
