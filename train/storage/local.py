"""Files of this host."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

from train.storage.place import Found, Sink, Source

BUFFER_BYTES = 1 << 20
"""Small writes are gathered up to this; larger ones go straight to the system."""


class Local:
    """Reads and writes files of this host; what was written is on the disk, with its name."""

    def names(self, path: str) -> list[str]:
        """What lies in a directory, in order; nothing if it is not there."""
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, path: str) -> Iterator[Found]:
        """All files below a directory; links are followed, into each directory once."""
        seen: set[str] = set()
        for directory, within, names in os.walk(path, followlinks=True):
            seen.add(os.path.realpath(directory))
            within[:] = [
                name
                for name in sorted(within)
                if os.path.realpath(os.path.join(directory, name)) not in seen
            ]
            for name in sorted(names):
                file = os.path.join(directory, name)
                if os.path.isfile(file):
                    yield Found(name=os.path.relpath(file, path), num_bytes=os.stat(file).st_size)

    def find(self, path: str) -> Found | None:
        """A file; None if there is none."""
        if not os.path.isfile(path):
            return None
        return Found(name="", num_bytes=os.stat(path).st_size)

    def read(self, path: str) -> bytes:
        """A whole file."""
        with open(path, "rb") as file:
            return file.read()

    def open(self, path: str) -> Source:
        """A file to read from."""
        return _OpenFile(path)

    @contextlib.contextmanager
    def create(self, path: str) -> Generator[Sink]:
        """A file to write; it is on the disk when the context ends, and no file if it raises."""
        _make_directory(os.path.dirname(path) or ".")
        try:
            with open(path, "wb", buffering=BUFFER_BYTES) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise
        _settle(os.path.dirname(path) or ".")

    def write(self, path: str, data: bytes) -> None:
        """A whole file at once: at any instant there is the old one or the new one."""
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, f".{name}.tmp-{secrets.token_hex(4)}")
        with self.create(temporary) as file:
            file.write(data)
        os.rename(temporary, path)
        _settle(directory or ".")

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all in it; for good."""
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
        _settle(os.path.dirname(path) or ".")


class _OpenFile:
    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY)
        self.num_bytes = os.fstat(self._handle).st_size
        if hasattr(os, "posix_fadvise"):
            # The system reads further ahead while pieces are hashed.
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(self, target: memoryview, *, offset: int) -> None:
        num_read = 0
        while num_read < len(target):
            count = os.preadv(self._handle, [target[num_read:]], offset + num_read)
            if count == 0:
                raise OSError(errno.EIO, "the file ends too early", self._path)
            num_read += count

    def close(self) -> None:
        os.close(self._handle)


def _make_directory(path: str) -> None:
    if not os.path.isdir(path):
        above = os.path.dirname(path) or "."
        _make_directory(above)
        os.makedirs(path, exist_ok=True)
        _settle(above)


def _settle(path: str) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
