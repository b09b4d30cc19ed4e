"""The index of an MDS directory and the listing of its documents' lengths."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, FailFast, Field, TypeAdapter
from typing_extensions import TypedDict

from train.data.document import ITEM_COLUMNS, LENGTH_COLUMNS, LENGTHS_NAME, MEDIA
from train.data.store.mds import Columns, columns_of
from train.errors import DataError
from train.storage.record import Count, Record, parse
from train.storage.stored_file import FileEntry, StoredFile, stored_file

INDEX_NAME: Final = "index.json"
INDEX_BYTES_AT_MOST: Final = 1 << 29
"""A million shards, of which every rank keeps a list."""

_VERSION: Final = 2
_SHARD_BYTES_AT_MOST: Final = 1 << 32
"""Offsets in a shard are 32 bits wide."""
_LENGTHS_OVERHEAD_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The shards of an MDS directory, in the order in which sample ids count through them.

    Attributes:
        files: each shard's file.
        samples: [shards] samples in each.
        columns: of the samples of each; shards with the same columns share one.
        sha256: of the index: equal on two ranks or two runs if and only if the data are.
    """

    files: list[StoredFile]
    samples: npt.NDArray[np.int64]
    columns: list[Columns]
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthsIndex:
    """Where the lengths of each shard's documents are, and what they add up to.

    Attributes:
        files: a file of lengths for each shard.
        totals: [shards, 6] sums of `LENGTH_COLUMNS` over each shard.
        items: the sizes of the items of each; None where there are none, or none was recorded.
        sha256: of the listing.
    """

    files: list[StoredFile]
    totals: npt.NDArray[np.int64]
    items: "list[ShardItems | None]"
    sha256: str


class ShardItems(NamedTuple):
    """The sizes of a shard's items.

    Attributes:
        file: holds them, see `ITEM_COLUMNS`.
        sized: [3] items of each of `MEDIA` whose size was recorded.
    """

    file: StoredFile
    sized: list[int]


class _ShardEntry(TypedDict):
    format: str
    version: int
    compression: str | None
    zip_data: object
    column_names: tuple[str, ...]
    column_encodings: tuple[str, ...]
    column_sizes: tuple[Count | None, ...]
    raw_data: FileEntry
    samples: Count


def _shard(entry: _ShardEntry) -> tuple[StoredFile, int, Columns]:
    """What is kept of an entry, at once: those of 100,000 shards are 45 MB of JSON."""
    if entry["format"] != "mds":
        raise ValueError(f"it lists {entry['format']} shards, and only MDS can be read")
    if entry["version"] != _VERSION:
        raise ValueError(f"it is of MDS version {entry['version']}, and only {_VERSION} is known")
    if entry["compression"] or entry["zip_data"]:
        raise ValueError(
            f"it lists compressed shards ({entry['compression']}): write them with compression=None"
        )
    samples, file = entry["samples"], stored_file(entry["raw_data"])
    if 4 * (samples + 2) > file.num_bytes:
        raise ValueError(f"{file.name} is too small for {samples:,} samples")
    if file.num_bytes > _SHARD_BYTES_AT_MOST:
        raise ValueError(f"{file.name} is larger than a shard can be")
    columns = columns_of(entry["column_names"], entry["column_encodings"], entry["column_sizes"])
    return file, samples, columns


class _Index(Record):
    version: Literal[2]
    shards: Annotated[list[Annotated[_ShardEntry, AfterValidator(_shard)]], FailFast()]


class _ItemsEntry(FileEntry):
    sized: Annotated[list[Count], Field(min_length=len(MEDIA), max_length=len(MEDIA))]


class _LengthsEntry(FileEntry):
    documents: Count
    totals: Annotated[list[Count], Field(min_length=6, max_length=6)]
    items: NotRequired[_ItemsEntry]


def _items(entry: _LengthsEntry) -> ShardItems | None:
    if "items" not in entry:
        return None
    items = ShardItems(stored_file(entry["items"]), entry["items"]["sized"])
    counts = entry["totals"][-len(MEDIA) :]
    if any(sized > count for sized, count in zip(items.sized, counts, strict=True)):
        raise ValueError(f"{items.file.name} has sizes of more items than there are")
    if items.file.num_bytes > 4 * len(ITEM_COLUMNS) * sum(counts) + _LENGTHS_OVERHEAD_BYTES:
        raise ValueError(f"{items.file.name} is too large for {sum(counts):,} items")
    return items


def _lengths(
    entry: _LengthsEntry,
) -> tuple[StoredFile, int, tuple[list[int], ShardItems | None]]:
    file, documents = stored_file(entry), entry["documents"]
    if file.num_bytes > 4 * len(LENGTH_COLUMNS) * documents + _LENGTHS_OVERHEAD_BYTES:
        raise ValueError(f"{file.name} is too large for {documents:,} documents")
    return file, documents, (entry["totals"], _items(entry))


def _columns(columns: list[str]) -> list[str]:
    if tuple(columns) != LENGTH_COLUMNS:
        raise ValueError(f"they should be {', '.join(LENGTH_COLUMNS)}")
    return columns


class _Lengths(Record):
    format_version: Literal[1]
    columns: Annotated[list[str], AfterValidator(_columns)]
    shards: Annotated[list[Annotated[_LengthsEntry, AfterValidator(_lengths)]], FailFast()]


_INDEX: Final[TypeAdapter[Any]] = TypeAdapter(_Index)
_LENGTHS: Final[TypeAdapter[Any]] = TypeAdapter(_Lengths)


def parse_index(data: bytes, *, place: str) -> ShardIndex:
    """What an index says.

    Args:
        data: the file's content.
        place: what to call the directory in messages.

    Raises:
        DataError: it is no index of uncompressed MDS shards with hashes and a `tokens` column, a
            column would have to be unpickled, or an entry points outside the directory.
    """
    where = f"{place}/{INDEX_NAME}"
    remedy = "copy or build the corpus again"
    index = parse(_INDEX, data, name=where, error=DataError, remedy=remedy)
    files, samples, columns = _unzipped(index.shards, where)
    counts = np.array(samples, dtype=np.int64)
    if not counts.any():
        raise DataError(f"{where} lists no samples; build the corpus again with more text.")
    return ShardIndex(
        files=files, samples=counts, columns=columns, sha256=hashlib.sha256(data).hexdigest()
    )


def parse_lengths_index(data: bytes, *, place: str, index: ShardIndex) -> LengthsIndex:
    """What the listing of lengths says.

    Args:
        data: the file's content.
        place: what to call the directory in messages.
        index: of the shards.

    Raises:
        DataError: it is no listing of lengths, or does not belong to this index.
    """
    where = f"{place}/{LENGTHS_NAME}"
    remedy = "build the corpus again with `python -m tools.corpus`"
    lengths = parse(_LENGTHS, data, name=where, error=DataError, remedy=remedy)
    files, documents, more = _unzipped(lengths.shards, where)
    sums, items = ([each[k] for each in more] for k in range(2))
    if documents != index.samples.tolist():
        raise DataError(
            f"{where} does not belong to the {INDEX_NAME} beside it: it lists other numbers of "
            f"documents; {remedy}."
        )
    totals = np.array(sums, dtype=np.int64).reshape(len(files), len(LENGTH_COLUMNS))
    room = np.array([file.num_bytes for file in index.files])
    impossible = np.flatnonzero((totals > room[:, None]).any(axis=1)).tolist()
    if impossible:
        name = index.files[impossible[0]].name
        raise DataError(f"{where} lists more in {name} than there is room for; {remedy}.")
    return LengthsIndex(
        files=files, totals=totals, items=items, sha256=hashlib.sha256(data).hexdigest()
    )


def _unzipped(entries: Sequence[Any], where: str) -> tuple[list[StoredFile], list[int], list[Any]]:
    """Files of a listing, how much each holds, and what more there is of each.

    Raises:
        DataError: a file is there twice.
    """
    files, counts, more = ([entry[k] for entry in entries] for k in range(3))
    names = Counter(file.name for file in files)
    if len(names) < len(files):
        twice = names.most_common(1)[0][0]
        raise DataError(f"{where} lists {twice} twice; copy or build the corpus again.")
    return files, counts, more
