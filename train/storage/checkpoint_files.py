"""Where checkpoints lie: a local directory, or object storage behind fsspec.

A place is a `Path` either way, so that names are joined and taken apart alike. One that begins
with a scheme, `Path("s3://bucket/run")`, lies in a store; pathlib drops the second slash, and
`shown` puts it back. Stores take credentials from where their clients look for them: for `s3://`
the usual AWS variables and files, and `S3_ENDPOINT_URL`.

Everything here raises `OSError`, whatever the store's own client raises.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

import fsspec

_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/+(.*)$")
PART_BYTES = 1 << 26
"""What is sent to or asked of a store at a time."""
BUFFER_BYTES = 1 << 20
"""Small local writes are gathered up to this; larger ones go straight to the system."""


class Sink(Protocol):
    """Takes the bytes of a file, one after another."""

    def write(self, data: Any, /) -> Any:
        """Appends a buffer."""
        ...


class Source(Protocol):
    """A file opened for reading."""

    num_bytes: int

    def read_into(self, target: memoryview, *, offset: int) -> None:
        """Fills the target from an offset on.

        Raises:
            OSError: it cannot be read, or ends before.
        """
        ...

    def close(self) -> None:
        """Lets go of the file."""
        ...


class Storage(Protocol):
    """What checkpoints need of local and remote storage. A missing file is FileNotFoundError."""

    def make_directory(self, path: Path) -> None:
        """Makes a directory and its parents; it may exist."""
        ...

    def names(self, path: Path) -> list[str]:
        """What lies in a directory; nothing if it is not there."""
        ...

    def is_file(self, path: Path) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, path: Path) -> bytes:
        """A whole file."""
        ...

    def open(self, path: Path) -> Source:
        """A file to read from."""
        ...

    def create(self, path: Path) -> contextlib.AbstractContextManager[Sink]:
        """A file to write; it is on the disk when the context ends, and no file if it raises."""
        ...

    def replace(self, path: Path, data: bytes) -> None:
        """Writes a whole file at once: at any instant there is the old one or the new one."""
        ...

    def settle(self, path: Path) -> None:
        """Brings the names in a directory to the disk."""
        ...

    def remove(self, path: Path) -> None:
        """Removes a file, or a directory with all in it."""
        ...


def storage_of(path: Path) -> Storage:
    """The storage that a place lies in.

    Raises:
        OSError: there is no client for its scheme.
    """
    if (found := _URL.match(str(path))) is None:
        return _Local()
    return _Remote(found[1])


def shown(path: Path) -> str:
    """A place as people write it."""
    found = _URL.match(str(path))
    return str(path) if found is None else f"{found[1]}://{found[2]}"


def is_remote(path: Path) -> bool:
    """Whether a place lies in object storage."""
    return _URL.match(str(path)) is not None


class _Local:
    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def names(self, path: Path) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def is_file(self, path: Path) -> bool:
        return path.is_file()

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def open(self, path: Path) -> Source:
        return _LocalSource(path)

    @contextlib.contextmanager
    def create(self, path: Path) -> Generator[Sink]:
        try:
            with path.open("wb", buffering=BUFFER_BYTES) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def replace(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
        with self.create(temporary) as file:
            file.write(data)
        temporary.rename(path)
        self.settle(path.parent)

    def settle(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class _LocalSource:
    def __init__(self, path: Path) -> None:
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
                raise OSError(errno.EIO, "the file ends too early", str(self._path))
            num_read += count

    def close(self) -> None:
        os.close(self._handle)


class _Remote:
    def __init__(self, scheme: str) -> None:
        options: dict[str, Any] = {"use_listings_cache": False}
        if scheme == "s3":
            options |= {
                "endpoint_url": os.environ.get("S3_ENDPOINT_URL"),
                "config_kwargs": {"connect_timeout": 10, "read_timeout": 60},
            }
        try:
            self._client: Any = fsspec.filesystem(scheme, **options)
        except (ValueError, ImportError) as error:
            raise OSError(
                errno.EPROTONOSUPPORT,
                f"{scheme}:// is no storage that can be used here ({error})",
            ) from error

    def make_directory(self, path: Path) -> None:
        """Nothing to do: names of objects hold the directories."""

    def names(self, path: Path) -> list[str]:
        with _as_os_errors(path):
            try:
                found = self._client.ls(shown(path), detail=False, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        # A store may list the directory itself as one of its names.
        last = {name.rstrip("/").rsplit("/", 1)[-1] for name in found if not _same(name, path)}
        return sorted(last)

    def is_file(self, path: Path) -> bool:
        with _as_os_errors(path):
            return self._client.isfile(shown(path))

    def read(self, path: Path) -> bytes:
        with _as_os_errors(path):
            return self._client.cat_file(shown(path))

    def open(self, path: Path) -> Source:
        with _as_os_errors(path):
            # Small neighbouring pieces come with one request.
            file = self._client.open(
                shown(path), "rb", block_size=PART_BYTES, cache_type="readahead"
            )
            return _RemoteSource(path, file)

    @contextlib.contextmanager
    def create(self, path: Path) -> Generator[Sink]:
        with _as_os_errors(path):
            file = self._client.open(shown(path), "wb", block_size=PART_BYTES)
            try:
                yield file
            except BaseException:
                with contextlib.suppress(Exception):
                    file.discard()
                file.closed = True  # closing would commit what has been sent
                raise
            file.close()

    def replace(self, path: Path, data: bytes) -> None:
        with _as_os_errors(path):
            self._client.pipe_file(shown(path), data)

    def settle(self, path: Path) -> None:
        """Nothing to do: what a store has answered for is kept."""

    def remove(self, path: Path) -> None:
        with _as_os_errors(path):
            self._client.rm(shown(path), recursive=not self._client.isfile(shown(path)))


class _RemoteSource:
    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        self.num_bytes = int(file.size)

    def read_into(self, target: memoryview, *, offset: int) -> None:
        with _as_os_errors(self._path):
            self._file.seek(offset)
            data = self._file.read(len(target))
        if len(data) != len(target):
            raise OSError(errno.EIO, "the file ends too early", shown(self._path))
        target[:] = data

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _as_os_errors(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.strerror is not None:
            raise
        raise type(error)(error.errno or errno.EIO, str(error), shown(path)) from error
    except Exception as error:
        # Clients raise what they like, as when there are no credentials.
        reason = f"{type(error).__name__}: {error}"
        raise OSError(errno.EIO, reason, shown(path)) from error


def _same(name: str, path: Path) -> bool:
    found = _URL.match(str(path))
    assert found is not None
    return name.strip("/") == found[2].strip("/")
