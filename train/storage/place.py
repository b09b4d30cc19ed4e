"""Where bytes lie: a path of this host or a name in a store, read and written alike."""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from train.errors import StorageError
from train.storage.config import StorageConfig

_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_UNSET: Final = re.compile(r"\$(\w+|\{[^}]*\})")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that is there.

    Attributes:
        name: its path below what was asked for; empty for the file itself.
        num_bytes: its size.
        version: what its store says that is another after a change; None for a local file.
    """

    name: str
    num_bytes: int
    version: str | None = None


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


class BackEnd(Protocol):
    """What reads and writes one kind of place; a name is taken as it stands, never as a pattern."""

    def names(self, path: str) -> list[str]:
        """What lies in a directory, in order; nothing if it is not there."""
        ...

    def files(self, path: str) -> Iterator[Found]:
        """All files below a directory."""
        ...

    def find(self, path: str) -> Found | None:
        """A file; None if there is none."""
        ...

    def read(self, path: str) -> bytes:
        """A whole file."""
        ...

    def open(self, path: str) -> Source:
        """A file to read from."""
        ...

    def create(self, path: str) -> AbstractContextManager[Sink]:
        """A file to write, which is there for good when the context ends, and not if it raises."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """A whole file at once: at any instant there is the old one or the new one."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all in it; for good."""
        ...


@dataclass(frozen=True)
class Place:
    """A file or directory, here or in a store, and how it is reached.

    Everything that it does raises OSError: a missing file is FileNotFoundError, and what a store
    refuses or fails to do is a StorageError, one sentence with its remedy.

    Attributes:
        written: as the user wrote it, with what was joined to it.
        path: of this host, or below the bucket.
        bucket: in which it lies; None for this host.
        storage: how a store is reached.
    """

    written: str
    path: str = field(compare=False)
    bucket: str | None = field(default=None, compare=False)
    storage: StorageConfig = field(default_factory=StorageConfig, compare=False, repr=False)

    @classmethod
    def parse(
        cls, text: str, storage: StorageConfig | None = None, *, expand: bool = True
    ) -> "Place":
        """The place that a user names: a path, or `s3://bucket/path`.

        `$VARIABLE` and, at the beginning of a path, `~` stand for what a shell makes of them,
        unless there is a file of that very name; any other sign is part of a name.

        Args:
            text: what the user wrote.
            storage: how a store is reached; by default as the environment says.
            expand: whether anything in it stands for something else.

        Raises:
            StorageError: it is of another kind, or a variable in it is not set.
        """
        storage = storage or StorageConfig()
        path = _expanded(text) if expand else text
        scheme = _SCHEME.match(path)
        if scheme is None:
            return cls(text, path if path == "/" else path.rstrip("/"), storage=storage)
        bucket, _, key = path[scheme.end() :].partition("/")
        if scheme[1] != "s3" or not bucket:
            raise StorageError(
                f"{text} is not a place that files can be read from or written to; give a path or "
                "an s3://bucket/path URL"
            )
        return cls(text.rstrip("/"), key.strip("/"), bucket, storage)

    @classmethod
    def of(cls, place: "Place | Path") -> "Place":
        """A place, where paths of this host are welcome as well."""
        return place if isinstance(place, Place) else cls(str(place), str(place))

    def __str__(self) -> str:
        return self.written

    def __fspath__(self) -> str:
        assert self.bucket is None, f"{self} is in a store"
        return self.path

    def __truediv__(self, name: str) -> "Place":
        path = f"{self.path.rstrip('/')}/{name}" if self.path else name
        return Place(f"{self.written.rstrip('/')}/{name}", path, self.bucket, self.storage)

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "Place":
        """The directory that it lies in."""
        if self.bucket is None:
            there = os.path.dirname
            return Place(there(self.written) or ".", there(self.path) or ".", None, self.storage)
        path = self.path.rpartition("/")[0]
        return Place(self.written.rpartition("/")[0], path, self.bucket, self.storage)

    @property
    def is_remote(self) -> bool:
        """Whether it lies in a store."""
        return self.bucket is not None

    def names(self) -> list[str]:
        """What lies in the directory, in order; nothing if it is not there."""
        return self._back_end.names(self.path)

    def files(self) -> Iterator[Found]:
        """All files below the directory."""
        return self._back_end.files(self.path)

    def find(self) -> Found | None:
        """The file's size and version; None if there is no file."""
        return self._back_end.find(self.path)

    def exists(self) -> bool:
        """Whether it is a file, or a directory that holds something or is empty on this host."""
        if self.bucket is None:
            return os.path.lexists(self.path)
        return self.find() is not None or next(self.files(), None) is not None

    def read(self) -> bytes:
        """The whole file."""
        return self._back_end.read(self.path)

    def open(self) -> Source:
        """The file, to read parts of."""
        return self._back_end.open(self.path)

    def create(self) -> AbstractContextManager[Sink]:
        """The file, to write: there for good when the context ends, and not if it raises.

        Directories are made as needed.
        """
        return self._back_end.create(self.path)

    def write(self, data: bytes) -> None:
        """Write the whole file: at any instant there is the old one or the new one."""
        self._back_end.write(self.path, data)

    def remove(self) -> None:
        """Remove the file, or the directory with all in it; for good."""
        self._back_end.remove(self.path)

    @property
    def _back_end(self) -> BackEnd:
        if self.bucket is None:
            from train.storage.local import Local

            return Local()
        from train.storage.bucket import Bucket

        return Bucket(self.bucket, self.storage)


def _expanded(text: str) -> str:
    path = os.path.expandvars(text)
    if _SCHEME.match(path) is None:
        if os.path.lexists(text):
            return text
        path = os.path.expanduser(path)
    if (unset := _UNSET.search(path)) is not None or path.startswith("~"):
        what = f"the variable {unset[0]} is not set" if unset else "there is no such home"
        raise StorageError(f"{text}: {what}; write the path out")
    return path
