"""Files that a corpus is built from, local or in object storage: found, opened, read."""

import contextlib
import io
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final, cast

import fsspec
import xxhash

from tools.shards.refusals import refusal
from train.errors import DataError

BLOCK_BYTES: Final = 1 << 20
HASHED_BYTES: Final = 1 << 20
"""Up to this size the whole content of a file tells whether it changed."""
_SAMPLE_BYTES: Final = 1 << 16
_MAGIC: Final = frozenset("*?[")
_VERSIONS: Final = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")
"""What stores tell of a file that changes when it is written anew; the first that there is."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file of a source.

    Attributes:
        path: to open it by.
        name: its path inside the source.
        num_bytes: its size.
        version: what its store says that changes with it; None for a local file.
    """

    path: str
    name: str
    num_bytes: int
    version: str | None = None


def listing(path: str) -> list[InputFile]:
    """The files that a file, directory or pattern stands for, by name; hidden ones left out.

    Args:
        path: local, or a URL such as `s3://bucket/raw/*.jsonl`.

    Raises:
        DataError: there is none.
    """
    path = path.removeprefix("file://")
    if "://" not in path:
        path = os.path.abspath(os.path.expanduser(path))
    system = _filesystem(path)
    with readable(path):
        # A directory may have an asterisk in its name.
        if system.isfile(path):
            found = {path: system.info(path)}
            base = str(PurePosixPath(system._strip_protocol(path)).parent)
        elif system.isdir(path):
            found = system.find(path, detail=True)
            base = system._strip_protocol(path)
        elif _MAGIC & set(path):
            found = {
                name: info
                for name, info in system.glob(path, detail=True).items()
                if info["type"] == "file"
            }
            base = _fixed_part(system._strip_protocol(path))
        else:
            raise DataError(f"There is no file or directory {path}; correct the source.")
    files: list[InputFile] = []
    for info in found.values():
        stripped = system._strip_protocol(info["name"])
        name = stripped.removeprefix(base).lstrip("/")
        is_hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if info["type"] == "file" and not is_hidden:
            files.append(
                InputFile(
                    path=_with_scheme(path, stripped),
                    name=name,
                    num_bytes=int(info["size"]),
                    version=_version(info) if "://" in path else None,
                )
            )
    if not files:
        raise DataError(f"{path} holds no files; correct the source.")
    return sorted(files, key=lambda file: file.name)


def stamp(file: InputFile) -> str:
    """What is another after a change of the file's content.

    Of a local file a hash of all of it; above `HASHED_BYTES` of its beginning, middle and end, and
    the time of its last change. Of a file in a store what the store says: ETag or time.
    """
    if file.version is not None:
        return file.version
    found = xxhash.xxh3_128()
    try:
        with open(file.path, "rb") as content:
            if file.num_bytes <= HASHED_BYTES:
                found.update(content.read())
                return found.hexdigest()
            last = file.num_bytes - _SAMPLE_BYTES
            for begin in (0, last // 2, last):
                content.seek(begin)
                found.update(content.read(_SAMPLE_BYTES))
            return f"{found.hexdigest()} {os.fstat(content.fileno()).st_mtime_ns}"
    except OSError:
        return "unreadable"  # reading says what is wrong, and whether that is to be skipped


@contextlib.contextmanager
def opened(path: str) -> Generator[BinaryIO]:
    """A file to read from; whatever goes wrong inside with storage is a DataError that names it.

    Raises:
        DataError: it cannot be read.
    """
    with readable(path):
        if "://" not in path:
            with open(path, "rb", buffering=BLOCK_BYTES) as file:
                yield file
        else:
            raw = _filesystem(path).open(path, "rb", block_size=8 * BLOCK_BYTES)
            with io.BufferedReader(raw, BLOCK_BYTES) as file:
                yield cast(BinaryIO, file)


def is_file(path: str) -> bool:
    """Whether there is such a file.

    Raises:
        DataError: the storage does not answer, or refuses.
    """
    with readable(path):
        return _filesystem(path).isfile(path)


def exists(path: str) -> bool:
    """Whether there is such a local file or directory."""
    return "://" not in path and os.path.exists(os.path.expanduser(path))


def content(path: str) -> bytes:
    """A whole small file.

    Raises:
        DataError: it cannot be read.
    """
    with opened(path) as file, readable(path):
        return file.read()


@contextlib.contextmanager
def readable(path: str) -> Generator[None]:
    """Turns what clients of storage raise into errors that name the file.

    Raises:
        DataError: instead of OSError and of whatever else a store's client raises.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except OSError as error:
        told = DataError(f"Cannot read {path}: {error.strerror or error}.")
        raise refusal(error, path) or told from error
    except Exception as error:
        if not type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "fsspec")):
            raise
        told = DataError(f"Cannot read {path}: {type(error).__name__}: {error}.")
        raise refusal(error, path) or told from error


def _filesystem(path: str) -> Any:
    scheme = path.split("://", 1)[0] if "://" in path else "file"
    options: dict[str, Any] = {}
    if scheme == "s3":
        options = {
            "endpoint_url": os.environ.get("S3_ENDPOINT_URL"),
            "config_kwargs": {"connect_timeout": 10, "read_timeout": 60},
            "use_listings_cache": False,
        }
    try:
        return fsspec.filesystem(scheme, **options)
    except (ValueError, ImportError) as error:
        raise DataError(
            f"{scheme}:// is no place that sources can be read from ({error}); give a path or an "
            "s3:// URL."
        ) from error


def _version(info: Mapping[str, Any]) -> str:
    return next((str(info[key]) for key in _VERSIONS if info.get(key)), "")


def _with_scheme(like: str, stripped: str) -> str:
    return f"{like.split('://', 1)[0]}://{stripped}" if "://" in like else stripped


def _fixed_part(pattern: str) -> str:
    """The directories of a pattern before its first that is none."""
    fixed: list[str] = []
    for part in pattern.split("/")[:-1]:
        if _MAGIC & set(part):
            break
        fixed.append(part)
    return "/".join(fixed)
