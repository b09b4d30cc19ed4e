"""A file as an index promises it, and whether what is there keeps the promise."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

import xxhash

from train.errors import StorageError

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


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a corpus, as listed in its index.

    Attributes:
        name: path below the corpus directory; stays inside it.
        num_bytes: its size.
        digest: a hash algorithm and the hash in hexadecimal; None where the index has none that
            is known here.
    """

    name: str
    num_bytes: int
    digest: tuple[str, str] | None

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "StoredFile":
        """From `{"basename": ..., "bytes": ..., "hashes": {...}}`, read with suspicion.

        Raises:
            ValueError: the path leaves the directory, or the size is none.
            KeyError: something is missing.
            TypeError: something is of another type.
        """
        name, size, hashes = entry["basename"], entry["bytes"], entry["hashes"]
        if not isinstance(name, str) or not isinstance(size, int) or not isinstance(hashes, dict):
            raise TypeError("a file has a name, a size and hashes")
        path = PurePosixPath(name)
        outside = path.is_absolute() or ".." in path.parts or not path.parts
        if outside or "\\" in name or "\0" in name:
            raise ValueError(f"the shard path {name!r} leaves the corpus directory")
        if size < 0:
            raise ValueError(f"negative size of {name}")
        known = next((name for name in HASHERS if name in hashes), None)
        digests = cast("dict[str, Any]", hashes)
        return cls(name, size, None if known is None else (known, str(digests[known])))

    def open(self, path: Path, *, check: bool) -> int:
        """A descriptor of the file as it lies on this host.

        Args:
            path: where.
            check: look at its hash too, which reads all of it.

        Raises:
            FaultyFileError: it is not there, or not as the index says.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FaultyFileError("is missing") from None
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
        if not check or self.digest is None:
            return None
        name, wanted = self.digest
        with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
            file.seek(0)
            found = hashlib.file_digest(file, HASHERS[name]).hexdigest()
        if found == wanted:
            return None
        return f"is damaged: its {name} hash is not the one in the index"


class FaultyFileError(StorageError):
    """A file is not as its index promises; the text says how, as the end of a sentence."""
