"""Records of a task's splits: from .jsonl, .parquet, or a directory that `datasets` has written."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from train.errors import DataError

_BATCH_RECORDS: Final = 1_024
_LINES: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_SUFFIXES: Final = (*_LINES, ".parquet")
_SHOWN_NAMES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record.

    Attributes:
        place: file and line, or file and number from 1, for messages.
        directory: of the file, below which the files lie that it names.
        number: from 0 in its split.
        values: by column.
    """

    place: str
    directory: Path
    number: int
    values: Mapping[str, Any]


def records(directory: Path, split: str) -> Iterator[Record]:
    """The records of a split.

    It lies in `SPLIT.jsonl`, compressed or not (`.gz`, `.zst`), or `SPLIT.parquet`; in parts,
    `SPLIT-00000-of-00002.parquet`, there or in `data`; or in a directory `SPLIT` of .arrow files,
    as `datasets.save_to_disk` leaves it.

    Raises:
        DataError: it is not there, or a file cannot be read.
    """
    number = 0
    for file in files(directory, split):
        read = {".parquet": _parquet, ".arrow": _arrow}.get(file.suffix, _lines)
        try:
            for at, values in read(file):
                yield Record(
                    place=f"{file}:{at}", directory=file.parent, number=number, values=values
                )
                number += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise DataError(f"{file} cannot be read ({reason}); get or build it again.") from error


def files(directory: Path, split: str) -> list[Path]:
    """The files of a split, in order.

    Raises:
        DataError: there is none, or there are several that may be meant.
    """
    places = (directory, directory / "data")
    found = [
        *([file] for suffix in _SUFFIXES if (file := directory / f"{split}{suffix}").is_file()),
        *(sorted(place.glob(f"{split}-*{suffix}")) for place in places for suffix in _SUFFIXES),
        _arrow_files(directory / split),
    ]
    found = [parts for parts in found if parts]
    if len(found) > 1:
        names = " and ".join(str(parts[0].relative_to(directory)) for parts in found)
        raise DataError(f"{directory} holds the split {split} twice, in {names}: take one away.")
    if found:
        return found[0]
    raise DataError(
        f"{directory} holds no split {split} ({split}.jsonl, {split}.jsonl.gz, {split}.jsonl.zst, "
        f"{split}.parquet, {split}-*.parquet, or a directory {split} of .arrow files)"
        f"{_instead(directory)}."
    )


def _instead(directory: Path) -> str:
    """What to do where a split is not found."""
    if not directory.is_dir():
        return ": build it with python -m tools.tasks build"
    if (directory / "state.json").is_file():
        return (
            "; it is one data set of `datasets` without splits: say which split it is, as in "
            "source.splits: {test: .}"
        )
    names = sorted(path.name for path in directory.iterdir())
    shown = ", ".join(names[:_SHOWN_NAMES]) + (" and others" if len(names) > _SHOWN_NAMES else "")
    otherwise = "where a split is called otherwise, name it in source.splits"
    return f"; it holds {shown or 'nothing'}: {otherwise}"


def _arrow_files(directory: Path) -> list[Path]:
    """Files in the order that `state.json` gives; a split may be without records."""
    state = directory / "state.json"
    if not state.is_file():
        return sorted(directory.glob("*.arrow"))
    try:
        return [
            directory / file["filename"] for file in json.loads(state.read_text())["_data_files"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state} is damaged ({error}); save the data set again.") from error


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with pa.input_stream(str(file)) as content, io.BufferedReader(content) as lines:
        for at, read in enumerate(lines, 1):
            try:
                # Windows writes a mark before the first line.
                line = read.decode("utf-8-sig" if at == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"line {at} is not UTF-8: {error.reason}") from error
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {at} is not JSON: {error}") from error
            if not isinstance(values, dict):
                raise ValueError(f"line {at} is a JSON {type(values).__name__}, not an object")
            if r"\ud" in line.lower():  # an escape of half a character, perhaps without the other
                try:
                    json.dumps(values, ensure_ascii=False).encode()
                except UnicodeEncodeError:
                    raise ValueError(f"line {at} has a character cut in half") from None
            yield at, values


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with pq.ParquetFile(file, page_checksum_verification=True) as table:
        yield from _rows(table.iter_batches(batch_size=_BATCH_RECORDS, use_threads=False))


def _arrow(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with pa.memory_map(str(file)) as content, pa.ipc.open_stream(content) as batches:
        yield from _rows(iter(batches))


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, dict[str, Any]]]:
    at = 0
    for batch in batches:
        for begin in range(0, len(batch), _BATCH_RECORDS):
            for values in batch.slice(begin, _BATCH_RECORDS).to_pylist():
                at += 1
                yield at, values
