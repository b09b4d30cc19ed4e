"""Reads the documents of a part in order, and notes each record or file that is none."""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tools.corpus import inputs
from tools.corpus.entries import (
    SEGMENTS_FIELD,
    Entry,
    Fields,
    media_piece,
    pieces_of_row,
    require_text,
)
from tools.corpus.media import SUFFIXES, RowError
from tools.corpus.plan import BuildPlan, Part, Slice
from tools.corpus.pool import Report
from train.data.document import KINDS
from train.data.payload import below
from train.data.segments import Segment, TextSegment
from train.errors import DataError

LOOKED_AT_ROWS: Final = 100
"""Rows of a file that tell whether it has payloads."""
MOST_OTHERS: Final = 30
"""Values that are kept to be told where no row has one that is asked for."""
_ROWS_AT_ONCE: Final = 256
_LARGEST_FIELD: Final = 1 << 30
_REPORT_DOCUMENTS: Final = 256
_REPORT_BYTES: Final = 1 << 20
_SURROGATES: Final = re.compile("[\ud800-\udfff]")

_UNREADABLE: Final = (
    DataError, OSError, ValueError, EOFError, MemoryError, csv.Error, zlib.error,
    pa.ArrowException,
)  # fmt: skip

Row = tuple[int, dict[str, Any] | RowError, float]
"""A record's number, its fields or what is wrong, and which share of its slice is read then."""


class _UnreadableError(RowError):
    """What follows in a file cannot be read."""


def none_asked_for(others: Collection[str]) -> str:
    """What is said where all records are passed over, with values that they have."""
    there = ", ".join(sorted(others)[:MOST_OTHERS])
    return f"No row has what --only asks for, but {there}: correct --only."


def ignore(*_: object) -> None:
    """Takes what nobody wants to know."""


@dataclass(kw_only=True)
class PartReader:
    """The documents of a part.

    Attributes:
        plan: of the build.
        part: to read.
        fields: columns of tables.
        note_bad: told where something is that cannot be made a document, and why.
        report: told how many bytes and documents were read.
        done_bytes: of the part's `num_bytes`, as far as it has been read.
        records: that were read, good or bad.
        passed_over: of these, the ones that `fields.only` does not ask for.
        others: values that such records have, the first that are met.
        empty: names of files that hold no record.
        cut_short: names of files that cannot be read to their end.
        fetched: paths of files that rows named.
    """

    plan: BuildPlan
    part: Part
    fields: Fields
    note_bad: Callable[[str], None] = ignore
    report: Report = ignore
    done_bytes: int = 0
    records: int = 0
    passed_over: int = 0
    others: set[str] = field(default_factory=set)
    empty: list[str] = field(default_factory=list)
    cut_short: list[str] = field(default_factory=list)
    fetched: set[str] = field(default_factory=set)

    def __iter__(self) -> Iterator[Entry]:
        told = documents = 0
        for entry in self._entries():
            yield entry
            documents += 1
            if documents == _REPORT_DOCUMENTS or self.done_bytes - told > _REPORT_BYTES:
                self.report(self.done_bytes - told, documents, 0)
                told, documents = self.done_bytes, 0
        self.report(self.done_bytes - told, documents, 0)

    def _entries(self) -> Iterator[Entry]:
        before = 0
        for piece in self.part.slices:
            is_one = piece.form in ("text", "media")
            rows: Iterable[Row] = [(0, {}, 1.0)] if is_one else _rows(piece, self.fields)
            records = self.records
            for number, row, share in rows:
                self.records += 1
                if isinstance(row, _UnreadableError):
                    self.cut_short.append(piece.name)
                self.done_bytes = before + int(piece.num_bytes * share)
                try:
                    if isinstance(row, RowError):
                        raise row
                    if self._passes_over(row):
                        continue
                    entry = self._entry(piece, number, row)
                except (RowError, DataError) as error:
                    told = f"{piece.path}{'' if is_one else f':{number}'}: {error}"
                    # A key of a row may hold half a character.
                    self.note_bad(told.encode("utf-8", "backslashreplace").decode())
                else:
                    yield entry
            if self.records == records and piece.begin == 0 and piece.end is None:
                self.empty.append(piece.name)
            before += piece.num_bytes
            self.done_bytes = before

    def _passes_over(self, row: Mapping[str, Any]) -> bool:
        other = self.fields.value_of_others(row)
        if other is None:
            return False
        self.passed_over += 1
        if len(self.others) < MOST_OTHERS:
            self.others.add(other)
        return True

    def _entry(self, piece: Slice, number: int, row: dict[str, Any]) -> Entry:
        source = self.plan.sources[self.part.source].name
        if piece.form in ("text", "media"):
            return Entry(id=f"{source}/{piece.name}", pieces=_pieces_of_file(piece))
        if piece.form == "made":
            pieces = pieces_of_row(row, fields=Fields(), fetch=inputs.content)
            return Entry(id=row["id"], pieces=pieces, split=row["split"])
        name = f"{piece.name}:{number}"
        if self.fields.id is not None:
            given = row.get(self.fields.id)
            if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
                raise RowError(f"there is no `{self.fields.id}` to call the document by")
            name = require_text(str(given), self.fields.id)
        pieces = pieces_of_row(row, fields=self.fields, fetch=partial(self._beside, piece.path))
        return Entry(id=f"{source}/{name}", pieces=pieces)

    def _beside(self, table: str, name: str) -> bytes:
        """A file that a table names by its path from the table's directory."""
        try:
            path = below(name)
        except ValueError as error:
            raise RowError(str(error)) from error
        try:
            place = f"{table.rsplit('/', 1)[0]}/{path}"
            content = inputs.content(place)
        except ValueError as error:  # a sign that no name of a file can have
            raise RowError(f"the path {name!r} cannot be that of a file") from error
        self.fetched.add(place)
        return content


def has_media(piece: Slice, fields: Fields) -> bool:
    """Whether a file has payloads, by its kind or its first rows."""
    if piece.form in ("media", "text", "made"):
        return piece.form == "media"
    # Where it cannot be read, reading says what is wrong, and whether that is to be skipped.
    for _, row, _ in islice(_rows(piece, fields), LOOKED_AT_ROWS):
        segments = {} if isinstance(row, RowError) else row.get(SEGMENTS_FIELD)
        places = (row, *(segments if isinstance(segments, list) else ()))
        if any(
            isinstance(place, dict) and any(place.get(name) is not None for name in KINDS)
            for place in places
        ):
            return True
    return False


def _pieces_of_file(piece: Slice) -> tuple[Segment, ...]:
    if piece.form == "text":
        return (TextSegment(text=decoded(inputs.content(piece.path), piece.path)),)
    if piece.caption is None:
        stem = PurePosixPath(piece.name).stem
        raise RowError(f"there is no text for it among the sources, neither {stem}.txt nor a table")
    kind = SUFFIXES[PurePosixPath(piece.name).suffix.lower()]
    payload = media_piece(kind, inputs.content(piece.path), fetch=inputs.content)
    caption = decoded(inputs.content(piece.caption), piece.caption)
    if not caption.strip():
        raise RowError(f"its text {piece.caption} is empty")
    return (payload, TextSegment(text=caption))


def decoded(data: bytes, path: str) -> str:
    """The text of a file, without a byte-order mark.

    Raises:
        RowError: it is not UTF-8, or no text; the message names the line.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RowError(f"{path} is UTF-16, not UTF-8; convert it with iconv -f UTF-16 -t UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RowError(f"{path} is not UTF-8 in line {line} ({error.reason})") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise RowError(f"{path} holds a byte of zero in line {line}: it is UTF-16, or no text")
    return text


def _rows(piece: Slice, fields: Fields) -> Generator[Row]:
    """The rows of a table."""
    read = {"csv": _csv_rows, "parquet": _parquet_rows}.get(piece.form, _json_rows)
    last, share = piece.first_row - 1, 0.0
    try:
        with inputs.opened(piece.path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if size != piece.file_bytes:
                raise DataError(
                    f"it has {size:,} bytes, but had {piece.file_bytes:,} when the build began"
                )
            for last, row, share in read(piece, file, fields):
                yield last, row, share
    except _UNREADABLE as error:
        # What cannot be read on ends here; rows before it have been told.
        left = f"about {1 - share:.0%} of it" if 0 < share < 0.995 else "its end"
        rest = left if last >= piece.first_row else "none of its rows"
        told = f"the file cannot be read from here on: {error} ({rest})"
        yield last + 1, _UnreadableError(told), 1.0


def _json_rows(piece: Slice, file: BinaryIO, fields: Fields) -> Generator[Row]:
    suffix = PurePosixPath(piece.path).suffix.lower()
    is_packed = suffix in (".gz", ".zst")
    if is_packed and not piece.file_bytes:
        raise DataError(f"it has 0 bytes, which no sound {suffix} has")
    file.seek(piece.begin)
    lines = (
        file
        if not is_packed
        else _zstd_lines(file)
        if suffix == ".zst"
        else gzip.GzipFile(fileobj=file)
    )
    size = (piece.file_bytes if piece.end is None else piece.end) - piece.begin
    keys = [f'"{name}"'.encode() for name in sorted(fields.wanted)]
    done = 0
    for number, line in enumerate(lines, piece.first_row):
        done = file.tell() if is_packed else done + len(line)
        if line.strip():
            yield number, _json_object(line, keys), done / size
        if piece.end is not None and done >= size:
            break


def _zstd_lines(file: BinaryIO) -> Iterator[bytes]:
    from backports import zstd  # here, because few read such

    # The longest window that there is: 2 GiB of memory, if a file was written with it.
    options = {int(zstd.DecompressionParameter.window_log_max): 31}
    try:
        yield from zstd.ZstdFile(file, options=options)
    except zstd.ZstdError as error:
        raise DataError(str(error)) from error


def _json_object(line: bytes, keys: Sequence[bytes]) -> dict[str, Any] | RowError:
    # Looking at every pair takes longer than all the rest: only where a key may stand twice.
    may_repeat = b"\\u00" in line or any(line.count(key) > 1 for key in keys)
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once if may_repeat else None)
    except RowError as error:
        return error
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON ({error})")
    return row if isinstance(row, dict) else RowError(f"a JSON {type(row).__name__}, not an object")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RowError(f"`{twice}` stands in it twice, and only one could be read")
    return row


def _csv_rows(piece: Slice, file: BinaryIO, fields: Fields) -> Generator[Row]:
    csv.field_size_limit(_LARGEST_FIELD)
    # What is not UTF-8 is marked in its cell, so that a row is left out and not all after it.
    with io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = csv.DictReader(text, strict=True)
        fault = _repeated(rows.fieldnames or (), fields)
        for row in rows:
            if fault is not None:
                found = fault
            elif None in row or None in row.values():
                found = RowError(f"not {len(rows.fieldnames or ())} columns")
            else:
                # An empty cell is how CSV says that there is nothing.
                found = {key: value for key, value in row.items() if value != ""}
                for name in fields.wanted & found.keys():
                    if not found[name].isascii() and _SURROGATES.search(found[name]):
                        found = RowError(f"`{name}` is not UTF-8")
                        break
                    if "\0" in found[name]:
                        found = RowError(f"`{name}` holds a byte of zero")
                        break
            yield rows.line_num, found, file.tell() / max(1, piece.file_bytes)


def _repeated(names: Sequence[str], fields: Fields) -> RowError | None:
    """What is wrong with every row of a table in which one of two columns could be read."""
    for name in sorted(fields.wanted):
        if names.count(name) > 1:
            return RowError(f"`{name}` names {names.count(name)} columns, and one could be read")
    return None


def _parquet_rows(piece: Slice, file: BinaryIO, fields: Fields) -> Generator[Row]:
    table = pq.ParquetFile(file, page_checksum_verification=True)
    groups = range(piece.begin, table.num_row_groups if piece.end is None else piece.end)
    names = table.schema_arrow.names
    columns = [name for name in names if name in fields.wanted]
    total = sum(table.metadata.row_group(number).num_rows for number in groups)
    fault = _repeated(names, fields)
    if not columns:
        fault = RowError(f"there is no column `{fields.text}` (it has {', '.join(names)})")
    if fault is not None:
        for count in range(total):
            yield piece.first_row + count, fault, (count + 1) / total
        return
    batches = table.iter_batches(
        batch_size=_ROWS_AT_ONCE, row_groups=list(groups), columns=columns, use_threads=False
    )
    for count, row in enumerate(row for batch in batches for row in _listed(batch)):
        yield piece.first_row + count, row, (count + 1) / total


def _listed(batch: pa.RecordBatch) -> Sequence[dict[str, Any] | RowError]:
    """The rows of a batch, each alone where one of them cannot be read."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if len(batch) == 1:
            return [RowError(f"it cannot be read ({error})")]
        return [row for at in range(len(batch)) for row in _listed(batch.slice(at, 1))]
