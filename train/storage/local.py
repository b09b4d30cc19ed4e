"""Files of this host."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

from typing_extensions import override

from train.errors import StorageError
from train.storage.place import Found, Place, Sink, Source, too_large

BUFFER_BYTES = 1 << 20
"""Small writes are gathered up to this; larger ones go straight to the system."""

_NO_FILES: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class LocalPlace(Place):
    """A path of this host; what was written is on the disk, with its name."""

    is_remote = False

    @override
    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    @override
    def files(self) -> Iterator[Found]:
        seen: set[str] = set()
        for directory, within, names in os.walk(
            self.path, onerror=_unless_missing, followlinks=True
        ):
            seen.add(os.path.realpath(directory))
            within[:] = [
                name
                for name in sorted(within)
                if os.path.realpath(os.path.join(directory, name)) not in seen
            ]
            for name in sorted(names):
                file = os.path.join(directory, name)
                if (found := _found(file, os.path.relpath(file, self.path))) is not None:
                    yield found

    @override
    def find(self) -> Found | None:
        return _found(self.path, "")

    @override
    def exists(self) -> bool:
        return os.path.lexists(self.path)

    @override
    def read(self, *, limit_bytes: int | None = None) -> bytes:
        with os.fdopen(open_file(self.path), "rb") as file:
            if limit_bytes is not None and os.fstat(file.fileno()).st_size > limit_bytes:
                raise too_large(self, limit_bytes)
            return file.read()

    @override
    def open(self) -> Source:
        return _OpenFile(self.path)

    @override
    @contextlib.contextmanager
    def create(self) -> Generator[Sink]:
        if _is_device(self.path):
            # Such as /dev/null: it takes bytes, and is never replaced by a file, nor removed.
            with open(self.path, "wb", buffering=BUFFER_BYTES) as file:
                yield file
            return
        _make_directory(self.parent.path)
        try:
            with open(self.path, "wb", buffering=BUFFER_BYTES) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            Path(self.path).unlink(missing_ok=True)
            raise
        settle(self.parent.path)

    @override
    def write(self, data: bytes) -> None:
        if _is_device(self.path):
            with self.create() as file:
                file.write(data)
            return
        temporary = self.parent / f".{self.name}.tmp-{secrets.token_hex(4)}"
        with temporary.create() as file:
            file.write(data)
        os.rename(temporary, self)
        settle(self.parent.path)

    @override
    def write_new(self, data: bytes) -> None:
        _make_directory(self.parent.path)
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return
        with self.create() as file:  # which removes what it cannot finish
            file.write(data)

    @override
    def _write_whole_new(self, data: bytes) -> None:
        temporary = self.parent / f".{self.name}.tmp-{secrets.token_hex(4)}"
        with temporary.create() as file:
            file.write(data)
        try:
            os.link(temporary, self)
        except FileExistsError:
            os.unlink(temporary)
            return
        except OSError:  # a file system without hard links
            os.rename(temporary, self)
        else:
            os.unlink(temporary)
        settle(self.parent.path)

    @override
    def remove(self) -> None:
        if os.path.isdir(self.path) and not os.path.islink(self.path):
            shutil.rmtree(self.path)
        else:
            os.unlink(self.path)
        settle(self.parent.path)


class _OpenFile:
    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = open_file(path)
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


def open_file(path: str | Path) -> int:
    """A descriptor of a file, to read from.

    Raises:
        StorageError: it is something else, such as a named pipe, which may never answer or end.
        OSError: it is not there, or cannot be opened.
    """
    _require_file(path, os.stat(path))
    # If a pipe has taken its place meanwhile, this does not wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_file(path, os.fstat(handle))
    except StorageError:
        os.close(handle)
        raise
    return handle


def _require_file(path: str | Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise StorageError(
            f"{path} is {_NO_FILES.get(kind, 'something else')} and no file: move it away, and put "
            "the file in its place"
        )


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def _found(path: str, name: str) -> Found | None:
    # Not `os.path.isfile`: to it a file is absent that the disk failed to say anything about.
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Found(name=name, num_bytes=status.st_size) if stat.S_ISREG(status.st_mode) else None


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _make_directory(path: str) -> None:
    if not os.path.isdir(path):
        above = os.path.dirname(path) or "."
        _make_directory(above)
        os.makedirs(path, exist_ok=True)
        settle(above)


def settle(path: str | Path) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
