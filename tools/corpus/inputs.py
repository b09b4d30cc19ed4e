"""Files that a corpus is built from, local or in object storage: found, opened, read."""

import contextlib
import glob
import io
import os
import re
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, cast

import xxhash

from train.errors import DataError, StorageError
from train.storage.bucket import StorePlace
from train.storage.place import Found, Place

BLOCK_BYTES: Final = 1 << 20
HASHED_BYTES: Final = 1 << 20
"""Up to this size the whole content of a file tells whether it changed."""
_SAMPLE_BYTES: Final = 1 << 16
_MAGIC: Final = frozenset("*?[")


def listing(path: str) -> tuple[Place, list[Found]]:
    """The files that a file, directory or pattern stands for; hidden ones are left out.

    Args:
        path: local, or a URL such as `s3://bucket/raw/*.jsonl`.

    Returns:
        What their names begin at, and the files by name.

    Raises:
        DataError: there is none.
    """
    with named(path):
        base, found = _found(placed(path))
        files = [
            file
            for file in sorted(found, key=lambda file: file.name)
            if not any(part.startswith(".") for part in PurePosixPath(file.name).parts)
        ]
    if not files:
        raise DataError(f"{path} holds no files; correct the source.")
    return base, files


def placed(path: str) -> Place:
    """The place that a user names, of which no variable is left: from anywhere the same.

    Raises:
        StorageError: it is none, or a variable in it is not set.
    """
    place = Place.parse(path.removeprefix("file://"))
    if isinstance(place, StorePlace):
        return Place.parse(f"s3://{place.bucket}/{place.path}", expand=False)
    return Place.of(Path(os.path.abspath(place)))


def _found(place: Place) -> tuple[Place, list[Found]]:
    """What the names of files begin at, and the files that a place stands for."""
    file = place.find()
    if file is not None:
        return place.parent, [replace(file, name=place.name)]
    # A directory may have an asterisk in its name.
    found = list(place.files())
    if found or place.exists():
        return place, found
    if not _MAGIC & set(place.path):
        raise DataError(f"There is no file or directory {place}; correct the source.")
    base = place.parent
    while _MAGIC & set(base.path):
        base = base.parent
    return base, _matching(base, place.path.removeprefix(base.path).lstrip("/"))


def _matching(base: Place, pattern: str) -> list[Found]:
    if base.is_remote:
        wanted = re.compile(_expression(pattern))
        return [each for each in base.files() if wanted.fullmatch(each.name)]
    names = glob.iglob(pattern, root_dir=base.path, recursive=True)
    return [replace(found, name=name) for name in names if (found := (base / name).find())]


def _expression(pattern: str) -> str:
    """A pattern of paths as a regular expression: `**/` is any directories, `*` stays in one."""
    signs = re.split(r"(\*\*/|\*|\?|\[!?\]?[^]]*\])", pattern)
    meant = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        meant.get(sign) or (sign.replace("[!", "[^", 1) if number % 2 else re.escape(sign))
        for number, sign in enumerate(signs)
    )


def stamp(place: Place, found: Found) -> str:
    """A fingerprint of a file's content.

    Of a local file a hash of all of it; above `HASHED_BYTES` of its beginning, middle and end, and
    the time of its last change. Of a file in a store what the store says: ETag or time.
    """
    if found.version is not None:
        return found.version
    digest = xxhash.xxh3_128()
    try:
        with open(place, "rb") as content:
            if found.num_bytes <= HASHED_BYTES:
                digest.update(content.read())
                return digest.hexdigest()
            last = found.num_bytes - _SAMPLE_BYTES
            for begin in (0, last // 2, last):
                content.seek(begin)
                digest.update(content.read(_SAMPLE_BYTES))
            return f"{digest.hexdigest()} {os.fstat(content.fileno()).st_mtime_ns}"
    except OSError:
        return "unreadable"  # reading says what is wrong, and whether that is to be skipped


@contextlib.contextmanager
def opened(path: str) -> Generator[BinaryIO]:
    """A file to read from; whatever goes wrong inside with storage is a DataError that names it.

    Raises:
        DataError: it cannot be read.
    """
    with named(path):
        is_remote = "://" in path
        raw = _Remote(Place.parse(path, expand=False)) if is_remote else io.FileIO(path)
        with io.BufferedReader(raw, BLOCK_BYTES) as file:
            yield cast(BinaryIO, file)


def content(path: Place | str) -> bytes:
    """A whole small file.

    Raises:
        DataError: it cannot be read.
    """
    with named(path):
        return (Place.parse(path, expand=False) if isinstance(path, str) else path).read()


@contextlib.contextmanager
def named(path: Place | str) -> Generator[None]:
    """Turns what storage raises into errors that name the file.

    Raises:
        DataError: instead of OSError.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no file {error.filename or path}.") from error
    except StorageError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # not the system's, but what a library says of the content
            raise DataError(str(error)) from error
        raise DataError(
            f"Cannot use {error.filename or path}: {error.strerror or error}. Check the path and "
            "its permissions."
        ) from error


class _Remote(io.RawIOBase):
    """A file in a store, read from wherever one likes."""

    def __init__(self, place: Place) -> None:
        self._source = place.open()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + (0, self._at, self._source.num_bytes)[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        left = max(0, self._source.num_bytes - self._at)
        target = memoryview(buffer).cast("B")[:left]
        self._source.read_into(target, offset=self._at)
        self._at += len(target)
        return len(target)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()
