"""The index of an MDS directory and the listing of its documents' lengths, read with suspicion."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from train.data.document import LENGTH_COLUMNS, LENGTHS_NAME
from train.data.store.listing import read_listing
from train.data.store.mds import SampleDecoder
from train.errors import DataError
from train.storage.stored_file import LeavesDirectoryError, StoredFile

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
    """

    files: list[StoredFile]
    samples: npt.NDArray[np.int64]
    decoders: list[SampleDecoder]


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthsIndex:
    """Where the lengths of each shard's documents are, and what they add up to.

    Attributes:
        files: a file of lengths for each shard.
        totals: [shards, 6] sums of `LENGTH_COLUMNS` over each shard.
    """

    files: list[StoredFile]
    totals: npt.NDArray[np.int64]


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
    files: list[StoredFile] = []
    samples: list[int] = []
    decoders: list[SampleDecoder] = []
    known: dict[str, SampleDecoder] = {}

    def take(entry: dict[str, Any]) -> None:
        _require_plain_mds(entry, where=where)
        columns = [entry["column_names"], entry["column_encodings"], entry["column_sizes"]]
        decoder = known.get(repr(columns))
        if decoder is None:
            decoder = known[repr(columns)] = _decoder(*columns, where=where)
        if not isinstance(entry["samples"], int) or entry["samples"] < 0:
            raise ValueError(f"a shard has {entry['samples']!r} samples")
        file = _file(entry["raw_data"], where=where)
        if 4 * (entry["samples"] + 2) > file.num_bytes:
            raise ValueError(f"{file.name} is too small for {entry['samples']:,} samples")
        files.append(file)
        samples.append(entry["samples"])
        decoders.append(decoder)

    try:
        if "shards" not in read_listing(data, key="shards", take=take):
            raise KeyError("shards")
        counts = np.array(samples, dtype=np.int64)
    except _MALFORMED as error:
        raise DataError(
            f"{where} is damaged or is no MDS index ({type(error).__name__}: {error}); copy or "
            "build the corpus again."
        ) from error
    if not counts.any():
        raise DataError(f"{where} lists no samples; build the corpus again with more text.")
    _require_distinct(files, where=where)
    return ShardIndex(files=files, samples=counts, decoders=decoders)


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
    files: list[StoredFile] = []
    documents: list[int] = []
    totals: list[list[int]] = []

    def take(entry: dict[str, Any]) -> None:
        files.append(_file(entry, where=where))
        documents.append(entry["documents"])
        if not all(isinstance(total, int) and total >= 0 for total in entry["totals"]):
            raise ValueError(f"totals are {entry['totals']!r}")
        totals.append(entry["totals"])

    try:
        rest = read_listing(data, key="shards", take=take)
        if rest["format_version"] != _LENGTHS_VERSION or "shards" not in rest:
            raise ValueError(f"format_version is {rest['format_version']!r}")
        if tuple(rest["columns"]) != LENGTH_COLUMNS:
            raise ValueError(f"columns are {rest['columns']!r}")
        sums = np.array(totals, dtype=np.int64).reshape(len(files), len(LENGTH_COLUMNS))
        agrees = np.array_equal(np.array(documents, dtype=np.int64), samples)
    except _MALFORMED as error:
        raise DataError(
            f"{where} is damaged or of another version ({type(error).__name__}: {error}); build "
            "the corpus again with `python -m tools.corpus`."
        ) from error
    if not agrees:
        raise DataError(
            f"{where} does not belong to the {INDEX_NAME} beside it: it lists other numbers of "
            "documents; build the corpus again with `python -m tools.corpus`."
        )
    _require_distinct(files, where=where)
    return LengthsIndex(files=files, totals=sums)


def _require_plain_mds(entry: dict[str, Any], *, where: str) -> None:
    if entry["format"] != "mds":
        raise DataError(f"{where} lists {entry['format']} shards; only MDS can be read.")
    if entry["version"] != _VERSION:
        raise DataError(f"{where} is of MDS version {entry['version']}; only {_VERSION} is known.")
    if entry.get("compression") or entry.get("zip_data"):
        raise DataError(
            f"{where} lists compressed shards ({entry.get('compression')}); write them with "
            "compression=None."
        )


def _decoder(
    names: list[str], encodings: list[str], sizes: list[int | None], *, where: str
) -> SampleDecoder:
    for name, encoding in zip(names, encodings, strict=True):
        if encoding.partition(":")[0] == "pkl":
            raise DataError(
                f"{where}: column {name} is pickled, and reading it could run any code; write "
                "tokens as ndarray."
            )
    if "tokens" not in names:
        raise DataError(
            f"{where} has the columns {', '.join(names)} but no `tokens`; build the corpus with "
            "`python -m tools.corpus build`."
        )
    return SampleDecoder.of(names, encodings, sizes)


def _file(entry: dict[str, Any], *, where: str) -> StoredFile:
    try:
        return StoredFile.from_entry(entry)
    except LeavesDirectoryError as error:
        raise DataError(
            f"{where}: the shard path {str(error)!r} leaves the corpus directory."
        ) from error


def _require_distinct(files: list[StoredFile], *, where: str) -> None:
    seen: set[str] = set()
    for file in files:
        if file.name in seen:
            raise DataError(f"{where} lists {file.name} twice; build the corpus again.")
        seen.add(file.name)
