"""Files that a corpus is built from, local or in object storage: found, opened, read."""

import contextlib
import errno
import fnmatch
import glob
import io
import os
import re
import stat
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, cast

import xxhash

from tools.corpus.left_out import LeftOut, shown
from train.errors import DataError, StorageError
from train.storage.bucket import StorePlace
from train.storage.place import Found, Place

BLOCK_BYTES: Final = 1 << 20
HASHED_BYTES: Final = 1 << 20
"""Up to this size the whole content of a file tells whether it changed."""
_SAMPLE_BYTES: Final = 1 << 16
_MAGIC: Final = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class Given(Found):
    """A file that a source holds.

    Attributes:
        identity: the same for all names of one file; None in a store.
    """

    identity: tuple[int, int] | None = None


@dataclass(kw_only=True)
class Listing:
    """What a source holds.

    Attributes:
        base: what names begin at.
        files: regular files, or links to such, by name.
        left_out: names of what is no such file, by reason.
    """

    base: Place
    files: list[Given] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def look(self, name: str) -> os.stat_result | None:
        """Take a local file, or leave it out; of a directory its status is all that is found."""
        try:
            status = os.stat(self.base / name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            self.left_out.add("broken link", name)
            return None
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            return status
        if stat.S_ISREG(status.st_mode):
            self.files.append(Given(name=name, num_bytes=status.st_size, identity=identity))
        else:
            self.left_out.add("no regular file", name)
        return None


def listing(path: str) -> Listing:
    """The files that a file, directory or pattern stands for, hidden ones left out.

    Links are followed, and each directory is gone through once, however many links lead to it.

    Args:
        path: local, or a URL such as `s3://bucket/raw/*.jsonl`.

    Raises:
        DataError: there is none.
    """
    with named(path):
        found = _found(placed(path))
    if not found.files:
        others = f" that can be read ({found.left_out})" if found.left_out else ""
        raise DataError(f"{path} holds no files{others}; correct the source.")
    found.files.sort(key=lambda file: file.name)
    return found


def placed(path: str) -> Place:
    """The place that a user names, of which no variable is left: from anywhere the same.

    Raises:
        StorageError: it is none, or a variable in it is not set.
    """
    if shown(path) != path:
        raise DataError(f"the name {shown(path)} is not UTF-8; rename it, or link to it by another")
    place = Place.parse(path.removeprefix("file://"))
    if isinstance(place, StorePlace):
        return Place.parse(f"s3://{place.bucket}/{place.path}", expand=False)
    return Place.of(Path(os.path.abspath(place)))


def _found(place: Place) -> Listing:
    file = place.find()
    if file is not None:
        if place.is_remote:
            known = Given(**vars(replace(file, name=place.name)))
            return Listing(base=place.parent, files=[known])
        found = Listing(base=place.parent)
        found.look(place.name)
        return found
    # A directory may have an asterisk in its name.
    if place.exists():
        if not place.is_remote and not os.path.isdir(place):
            raise DataError(f"{place} is neither a file nor a directory; correct the source.")
        return _below(place)
    if not _MAGIC & set(place.path):
        raise DataError(f"There is no file or directory {place}; correct the source.")
    base = place.parent
    while _MAGIC & set(base.path):
        base = base.parent
    return _matching(base, place.path.removeprefix(base.path).lstrip("/"))


def _below(base: Place, *, hidden: bool = False) -> Listing:
    """All that lies below a directory, hidden files too if they are asked for."""
    found = Listing(base=base)
    if base.is_remote:
        assert isinstance(base, StorePlace)
        for file in base.files():
            parts = PurePosixPath(file.name).parts
            at = next((at for at, part in enumerate(parts, 1) if part.startswith(".")), None)
            if at is None or hidden:
                found.files.append(Given(**vars(file)))
            else:
                found.left_out.add("hidden", "/".join(parts[:at]) + "/" * (at < len(parts)))
        return found
    status = os.stat(base)
    seen = {(status.st_dev, status.st_ino)}
    waiting = [""]
    while waiting:
        within = waiting.pop()
        below: list[str] = []
        for name in sorted(os.listdir(base / within if within else base)):
            path = f"{within}/{name}" if within else name
            if name.startswith(".") and not hidden:
                found.left_out.add("hidden", path + "/" * os.path.isdir(base / path))
                continue
            status = found.look(path)
            if status is None:
                continue
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                found.left_out.add("link to a directory that is read already", f"{path}/")
            else:
                seen.add(identity)
                below.append(path)
        waiting += reversed(below)
    return found


def _matching(base: Place, pattern: str) -> Listing:
    if base.is_remote or "**" in pattern:
        found = _below(base, hidden=re.search(r"(^|/)\.", pattern) is not None)
        wanted = re.compile(_expression(re.sub(r"\*\*$", "**/*", pattern)))
        found.files = [file for file in found.files if wanted.fullmatch(file.name)]
        found.left_out.keep(wanted.fullmatch)
        return found
    found = Listing(base=base)
    for name in glob.iglob(pattern, root_dir=base.path):
        if found.look(name) is not None:
            found.left_out.add("directory, whose files end the pattern with **", f"{name}/")
    return found


def _expression(pattern: str) -> str:
    """A pattern of paths as a regular expression: `**/` is any directories, `*` stays in one."""
    signs = re.split(r"(\*\*/|\*|\?|\[!?\]?[^]/]*\])", pattern)
    meant = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        # What stands in brackets is for fnmatch, as in patterns that glob takes; \Z ends it.
        meant.get(sign) or ("(?!/)" + fnmatch.translate(sign)[:-2] if at % 2 else re.escape(sign))
        for at, sign in enumerate(signs)
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


def content(path: Place | str, *, limit_bytes: int | None = None) -> bytes:
    """A whole small file.

    Args:
        path: of the file.
        limit_bytes: refuse one that is larger.

    Raises:
        DataError: it cannot be read.
    """
    with named(path):
        place = Place.parse(path, expand=False) if isinstance(path, str) else path
        return place.read(limit_bytes=limit_bytes)


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
