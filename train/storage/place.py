"""Places of bytes: a path of this host or a name in a store, read and written alike."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from train.errors import StorageError
from train.storage.config import StorageConfig
from train.storage.path import SCHEME, expanded


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that is there.

    Attributes:
        name: its path below what was asked for; empty for the file itself.
        num_bytes: its size.
        version: what its store gives each content, such as the ETag; None for a local file.
    """

    name: str
    num_bytes: int
    version: str | None = None


class ReplacedError(StorageError):
    """Another file has taken the place of one that was to be written over."""


class Sink(Protocol):
    """Takes the bytes of a file, one after another."""

    def write(self, data: Any, /) -> Any:
        """Append a buffer."""
        ...


class Source(Protocol):
    """A file opened for reading, of which any part can be read."""

    num_bytes: int

    def read_into(self, target: memoryview, *, offset: int) -> None:
        """Fill the target from an offset on.

        Raises:
            OSError: it cannot be read, or ends before.
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


@dataclass(frozen=True)
class Place(ABC):
    """A file or directory, here or in a store; a name is taken as it stands, never as a pattern.

    Everything that it does raises OSError: a missing file is FileNotFoundError, and what a store
    refuses or fails to do is a StorageError, one sentence with its remedy.

    Attributes:
        written: as the user wrote it, with what was joined to it.
        path: of this host, or below the bucket.
        storage: how a store is reached.
    """

    is_remote: ClassVar[bool]
    """Whether it lies in a store."""

    written: str
    path: str = field(compare=False)
    storage: StorageConfig = field(default_factory=StorageConfig, compare=False, repr=False)

    @staticmethod
    def parse(text: str, storage: StorageConfig | None = None, *, expand: bool = True) -> "Place":
        """The place that a user names: a path, or `s3://bucket/path`.

        What `~` and `$VARIABLE` in it stand for, see `train.storage.path`.

        Args:
            text: what the user wrote.
            storage: how a store is reached; by default as the environment says.
            expand: whether anything in it stands for something else.

        Raises:
            StorageError: it is of another kind, or a variable in it is not set.
        """
        from train.storage.bucket import StorePlace
        from train.storage.local import LocalPlace

        storage = storage or StorageConfig()
        path = expanded(text) if expand else text
        scheme = SCHEME.match(path)
        if scheme is None:
            # Of a root alone one slash stays.
            written, path = (name.rstrip("/") or name[:1] for name in (text, path))
            return LocalPlace(written, path, storage)
        bucket, _, key = path[scheme.end() :].partition("/")
        if scheme[1] != "s3" or not bucket:
            raise StorageError(
                f"{text} is not a place that files can be read from or written to; give a path or "
                "an s3://bucket/path URL"
            )
        return StorePlace(text.rstrip("/"), key.strip("/"), storage, bucket)

    @staticmethod
    def of(place: "Place | Path") -> "Place":
        """A place, where paths of this host are welcome as well."""
        from train.storage.local import LocalPlace

        return place if isinstance(place, Place) else LocalPlace(str(place), str(place))

    def __str__(self) -> str:
        return self.written

    def __fspath__(self) -> str:
        assert not self.is_remote, f"{self} is in a store"
        return self.path

    def __truediv__(self, name: str) -> Self:
        path = f"{self.path.rstrip('/')}/{name}" if self.path else name
        return replace(self, written=f"{self.written.rstrip('/')}/{name}", path=path)

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Self:
        """The directory that it lies in."""
        path = os.path.dirname(self.path) or ("" if self.is_remote else ".")
        return replace(self, written=os.path.dirname(self.written) or ".", path=path)

    @property
    def in_haste(self) -> Self:
        """The same place, for questions that are asked once, and whose answer may stay out."""
        return self

    @abstractmethod
    def names(self) -> list[str]:
        """What lies in the directory, in order; nothing if it is not there."""

    @abstractmethod
    def files(self) -> Iterator[Found]:
        """All files below the directory."""

    @abstractmethod
    def find(self) -> Found | None:
        """The file's size and version; None if there is no file."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether it is a file, or a directory; in a store, one that holds something."""

    @abstractmethod
    def read(self, *, limit_bytes: int | None = None) -> bytes:
        """The whole file.

        Args:
            limit_bytes: refuse one that is larger, before anything is read of it.
        """

    @abstractmethod
    def open(self) -> Source:
        """The file, to read parts of."""

    @abstractmethod
    def create(self) -> AbstractContextManager[Sink]:
        """The file, to write: there for good when the context ends, and not if it raises.

        Directories are made as needed.
        """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Write the whole file: at any instant there is the old one or the new one."""

    @abstractmethod
    def write_new(self, data: bytes) -> None:
        """Write the whole file, unless there is one; of several that do so at once, one does.

        A reader may see it empty or cut short meanwhile.
        """

    def write_over(self, data: bytes, *, before: Found | None) -> None:
        """Write the whole file in the place of what was there.

        Args:
            data: all of it.
            before: from `find`. In a store any other is refused, where it knows how; here none is.

        Raises:
            ReplacedError: another one is there by now.
        """
        del before
        self.write(data)

    def write_once(self, data: bytes) -> None:
        """Write the whole file, whole at any instant, which no process has written another way.

        Raises:
            StorageError: there is another one.
        """
        self._write_whole_new(data)
        if self.read() != data:
            raise StorageError(
                f"{self} was written by another process meanwhile, which also writes there: end "
                "one of them"
            )

    @abstractmethod
    def _write_whole_new(self, data: bytes) -> None:
        """Write the whole file, unless there is one, so that no reader sees a part of it."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the file, or the directory with all in it; for good."""


def too_large(place: object, limit_bytes: int) -> StorageError:
    """An error that says that a file is larger than any of its kind."""
    return StorageError(
        f"{place} is larger than {limit_bytes:,} bytes, which no such file is: put the right one "
        "in its place"
    )
