"""The index of an MDS directory and the listing of its documents' lengths, read with suspicion."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from train.data.document import LENGTH_COLUMNS, LENGTHS_NAME
from train.data.store.mds import Decode, document_decoder
from train.errors import DataError
from train.storage.stored_file import StoredFile

Rest = TypeVar("Rest")

INDEX_NAME: Final = "index.json"

_VERSION: Final = 2
_LENGTHS_VERSION: Final = 1
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The shards of an MDS directory, in the order in which sample ids count through them.

    Attributes:
        files: each shard's file.
        samples: [shards] samples in each.
        decoders: what decodes the samples of each; shards with the same columns share one.
        sha256: of the index: equal on two ranks or two runs if and only if the data are.
    """

    files: list[StoredFile]
    samples: npt.NDArray[np.int64]
    decoders: list[Decode]
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthsIndex:
    """Where the lengths of each shard's documents are, and what they add up to.

    Attributes:
        files: a file of lengths for each shard.
        totals: [shards, 6] sums of `LENGTH_COLUMNS` over each shard.
        sha256: of the listing.
    """

    files: list[StoredFile]
    totals: npt.NDArray[np.int64]
    sha256: str


def parse_index(data: bytes, *, place: str) -> ShardIndex:
    """What an index says.

    Args:
        data: the file's content.
        place: what to call the directory in messages.

    Raises:
        DataError: it is no index of uncompressed MDS shards with a `tokens` column, a column
            would have to be unpickled, or an entry points outside the directory.
    """
    where = f"{place}/{INDEX_NAME}"
    known: dict[str, Decode] = {}

    def take(entry: dict[str, Any]) -> tuple[StoredFile, int, Decode]:
        _require_plain_mds(entry)
        columns = [entry["column_names"], entry["column_encodings"], entry["column_sizes"]]
        decoder = known.get(repr(columns))
        if decoder is None:
            decoder = known[repr(columns)] = document_decoder(*columns)
        samples, file = entry["samples"], StoredFile.from_entry(entry["raw_data"])
        if not isinstance(samples, int) or samples < 0:
            raise ValueError(f"a shard has {samples!r} samples")
        if 4 * (samples + 2) > file.num_bytes:
            raise ValueError(f"{file.name} is too small for {samples:,} samples")
        return file, samples, decoder

    try:
        _, entries = _parse(data, "raw_data", take)
        counts = np.array([samples for _, samples, _ in entries], dtype=np.int64)
    except _MALFORMED as error:
        raise DataError(
            f"{where} is damaged or is no MDS index ({type(error).__name__}: {error}); copy or "
            "build the corpus again."
        ) from error
    if not counts.any():
        raise DataError(f"{where} lists no samples; build the corpus again with more text.")
    return ShardIndex(
        files=[file for file, _, _ in entries],
        samples=counts,
        decoders=[decoder for _, _, decoder in entries],
        sha256=hashlib.sha256(data).hexdigest(),
    )


def parse_lengths_index(data: bytes, *, place: str, samples: npt.NDArray[np.int64]) -> LengthsIndex:
    """What the listing of lengths says.

    Args:
        data: the file's content.
        place: what to call the directory in messages.
        samples: [shards] documents in each shard, as the index says.

    Raises:
        DataError: it is no listing of lengths, or does not belong to this index.
    """
    where = f"{place}/{LENGTHS_NAME}"

    def take(entry: dict[str, Any]) -> tuple[StoredFile, int, list[int]]:
        if not all(isinstance(total, int) and total >= 0 for total in entry["totals"]):
            raise ValueError(f"totals are {entry['totals']!r}")
        return StoredFile.from_entry(entry), entry["documents"], entry["totals"]

    try:
        rest, entries = _parse(data, "documents", take)
        if rest["format_version"] != _LENGTHS_VERSION:
            raise ValueError(f"format_version is {rest['format_version']!r}")
        if tuple(rest["columns"]) != LENGTH_COLUMNS:
            raise ValueError(f"columns are {rest['columns']!r}")
        totals = np.array([totals for _, _, totals in entries], dtype=np.int64)
        totals = totals.reshape(len(entries), len(LENGTH_COLUMNS))
        documents = np.array([documents for _, documents, _ in entries], dtype=np.int64)
    except _MALFORMED as error:
        raise DataError(
            f"{where} is damaged or of another version ({type(error).__name__}: {error}); build "
            "the corpus again with `python -m tools.corpus`."
        ) from error
    if not np.array_equal(documents, samples):
        raise DataError(
            f"{where} does not belong to the {INDEX_NAME} beside it: it lists other numbers of "
            "documents; build the corpus again with `python -m tools.corpus`."
        )
    return LengthsIndex(
        files=[file for file, _, _ in entries],
        totals=totals,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _parse(
    data: bytes, key: str, take: Callable[[dict[str, Any]], tuple[StoredFile, int, Rest]]
) -> tuple[dict[str, Any], list[tuple[StoredFile, int, Rest]]]:
    """A JSON object, and what becomes of the entries of its `shards`, which have this key.

    Each is taken as soon as it is parsed: those of a hundred thousand shards are 60 MB of JSON,
    and as objects ten times as much, in every rank.
    """
    document = json.loads(data, object_hook=lambda found: take(found) if key in found else found)
    entries = document["shards"]
    if not isinstance(entries, list) or not all(isinstance(entry, tuple) for entry in entries):
        raise ValueError(f"not all shards have {key}")
    counts = Counter(file.name for file, _, _ in entries)
    if len(counts) < len(entries):
        raise ValueError(f"it lists {counts.most_common(1)[0][0]} twice")
    return document, entries


def _require_plain_mds(entry: dict[str, Any]) -> None:
    if entry["format"] != "mds":
        raise ValueError(f"it lists {entry['format']} shards, and only MDS can be read")
    if entry["version"] != _VERSION:
        raise ValueError(f"it is of MDS version {entry['version']}, and only {_VERSION} is known")
    if entry.get("compression") or entry.get("zip_data"):
        raise ValueError(
            f"it lists compressed shards ({entry.get('compression')}): write them with "
            "compression=None"
        )
