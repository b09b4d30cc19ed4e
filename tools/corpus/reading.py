"""Reads the documents of a part in order, and reports each record or file that is none."""

import contextlib
import csv
import io
import json
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tools.corpus import inputs
from tools.corpus.entries import (
    SEGMENTS_FIELD,
    Bad,
    Entry,
    Fields,
    Piece,
    RowError,
    TextPiece,
    media_piece,
    pieces_of_row,
    require_content,
    require_text,
)
from tools.corpus.media import KINDS, SUFFIXES
from tools.corpus.plan import Part, Slice
from train.errors import DataError

LOOKED_AT_ROWS: Final = 100
"""Rows of a file that tell whether it has payloads."""
_ROWS_AT_ONCE: Final = 256
_COMPRESSED_BLOCK_BYTES: Final = 1 << 16
"""Where a file is cut off, what the last block held is lost with it."""
_LARGEST_FIELD: Final = 1 << 30

_COMPRESSIONS: Final = {".zst": "zstd", ".gz": "gzip"}

Row = tuple[int, dict[str, Any] | Bad]


class PartReader:
    """The documents of a part.

    Attributes:
        done_bytes: of the part's `num_bytes`, as far as it has been read.
    """

    def __init__(self, part: Part, *, source: str, fields: Fields) -> None:
        """Nothing is opened yet.

        Args:
            part: to read.
            source: name of its source.
            fields: columns of tables.
        """
        self.done_bytes = 0
        self._part = part
        self._source = source
        self._fields = fields

    def __iter__(self) -> Iterator[Entry | Bad]:
        before = 0
        for piece in self._part.slices:
            if piece.form in ("text", "media"):
                yield self._whole_file(piece)
            else:
                for item, share in self._rows(piece):
                    self.done_bytes = before + int(piece.num_bytes * share)
                    yield item
            before += piece.num_bytes
            self.done_bytes = before

    def _whole_file(self, piece: Slice) -> Entry | Bad:
        name = f"{self._source}/{piece.name}"
        try:
            return Entry(id=name, pieces=_pieces_of_file(piece))
        except (RowError, DataError) as error:
            return Bad(where=piece.path, reason=str(error))

    def _rows(self, piece: Slice) -> Generator[tuple[Entry | Bad, float]]:
        progress = [0.0]
        for number, row in _rows(piece, self._fields, progress):
            where = f"{piece.path}:{number}"
            if isinstance(row, Bad):
                yield row, progress[0]
                continue
            try:
                yield self._entry(piece, number, row), progress[0]
            except (RowError, DataError) as error:
                yield Bad(where=where, reason=str(error)), progress[0]

    def _entry(self, piece: Slice, number: int, row: dict[str, Any]) -> Entry:
        if piece.form == "made":
            pieces = pieces_of_row(row, fields=Fields(), fetch=inputs.content)
            return Entry(id=row["id"], pieces=pieces, split=row["split"])
        name = f"{piece.name}:{number}"
        if self._fields.id is not None:
            given = row.get(self._fields.id)
            if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
                raise RowError(f"there is no `{self._fields.id}` to call the document by")
            name = require_text(str(given), self._fields.id)
        pieces = pieces_of_row(
            row, fields=self._fields, fetch=lambda path: _beside(piece.path, path)
        )
        return Entry(id=f"{self._source}/{name}", pieces=pieces)


def has_media(piece: Slice, fields: Fields) -> bool:
    """Whether a file has payloads, by its kind or its first rows."""
    if piece.form in ("media", "text", "made"):
        return piece.form == "media"
    with contextlib.suppress(DataError):
        return any(
            _row_has_media(row)
            for _, row in islice(_rows(piece, fields, [0.0]), LOOKED_AT_ROWS)
            if not isinstance(row, Bad)
        )
    return False  # reading says what is wrong, and whether that is to be skipped


def _row_has_media(row: dict[str, Any]) -> bool:
    segments = row.get(SEGMENTS_FIELD)
    inner = segments if isinstance(segments, list) else []
    return any(
        isinstance(place, dict) and any(place.get(name) is not None for name in KINDS)
        for place in (row, *inner)
    )


def _pieces_of_file(piece: Slice) -> tuple[Piece, ...]:
    if piece.form == "text":
        text = TextPiece(text=decoded(inputs.content(piece.path), piece.path))
        return require_content([text])
    if piece.caption is None:
        stem = PurePosixPath(piece.name).stem
        raise RowError(f"there is no text for it, neither {stem}.txt nor a table")
    kind = SUFFIXES[PurePosixPath(piece.name).suffix.lower()]
    payload = media_piece(kind, inputs.content(piece.path), fetch=inputs.content)
    caption = decoded(inputs.content(piece.caption), piece.caption)
    if not caption.strip():
        raise RowError(f"its text {piece.caption} is empty")
    return (payload, TextPiece(text=caption))


def decoded(data: bytes, path: str) -> str:
    """The text of a file, without a byte-order mark.

    Raises:
        RowError: it is not UTF-8; the message names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RowError(f"{path} is not UTF-8 in line {line} ({error.reason})") from error


def _beside(table: str, name: str) -> bytes:
    """A file that a table names by its path from the table's directory."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "://" in name or not path.parts:
        raise RowError(f"the path {name!r} does not lie beside the table or below")
    return inputs.content(f"{table.rsplit('/', 1)[0]}/{path}")


def _rows(piece: Slice, fields: Fields, progress: list[float]) -> Generator[Row]:
    """The rows of a table with their numbers; how far it is read goes into `progress`."""
    read = {"csv": _csv_rows, "parquet": _parquet_rows}.get(piece.form, _json_rows)
    last = piece.first_row - 1
    try:
        with inputs.opened(piece.path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if size != piece.file_bytes:
                raise DataError(
                    f"it has {size:,} bytes, but had {piece.file_bytes:,} when the build began"
                )
            for last, row in read(piece, file, fields, progress):
                yield last, row
    except (DataError, OSError, ValueError, csv.Error, pa.ArrowException) as error:
        # What cannot be read on ends here; rows before it have been told.
        where = f"{piece.path}:{last + 1}"
        yield last + 1, Bad(where=where, reason=f"the file cannot be read from here on: {error}")


def _json_rows(
    piece: Slice, file: BinaryIO, fields: Fields, progress: list[float]
) -> Generator[Row]:
    method = next((m for end, m in _COMPRESSIONS.items() if piece.path.lower().endswith(end)), None)
    if method is not None:
        stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), method)
        for number, line in enumerate(io.BufferedReader(stream, _COMPRESSED_BLOCK_BYTES), 1):
            progress[0] = file.tell() / max(1, piece.file_bytes)
            if line.strip():
                yield number, _json_object(line, f"{piece.path}:{number}")
        return
    file.seek(piece.begin)
    offset = piece.begin
    end = piece.file_bytes if piece.end is None else piece.end
    number = piece.first_row
    while offset < end:
        line = file.readline()
        offset += len(line)
        progress[0] = (offset - piece.begin) / (end - piece.begin)
        if line.strip():
            yield number, _json_object(line, f"{piece.path}:{number}")
        number += 1


def _json_object(line: bytes, where: str) -> dict[str, Any] | Bad:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Bad(where=where, reason=f"not JSON ({error})")
    if not isinstance(row, dict):
        return Bad(where=where, reason=f"a JSON {type(row).__name__}, not an object")
    return row


def _csv_rows(
    piece: Slice, file: BinaryIO, fields: Fields, progress: list[float]
) -> Generator[Row]:
    csv.field_size_limit(_LARGEST_FIELD)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text, strict=True)
        for row in rows:
            progress[0] = file.tell() / max(1, piece.file_bytes)
            where = f"{piece.path}:{rows.line_num}"
            if None in row or None in row.values():
                expected = len(rows.fieldnames or ())
                yield rows.line_num, Bad(where=where, reason=f"not {expected} columns")
                continue
            # An empty cell is how CSV says that there is nothing.
            yield rows.line_num, {key: value for key, value in row.items() if value != ""}


def _parquet_rows(
    piece: Slice, file: BinaryIO, fields: Fields, progress: list[float]
) -> Generator[Row]:
    table = pq.ParquetFile(file)
    groups = range(piece.begin, table.num_row_groups if piece.end is None else piece.end)
    columns = [name for name in table.schema_arrow.names if name in fields.wanted]
    if not columns:
        there = ", ".join(table.schema_arrow.names)
        raise DataError(f"there is no column `{fields.text}` (it has {there})")
    total = sum(table.metadata.row_group(number).num_rows for number in groups)
    number = piece.first_row
    for batch in table.iter_batches(
        batch_size=_ROWS_AT_ONCE, row_groups=list(groups), columns=columns, use_threads=False
    ):
        for row in batch.to_pylist():
            progress[0] = (number - piece.first_row + 1) / total
            yield number, row
            number += 1
