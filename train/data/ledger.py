"""Ledger of what each rank has read, step by step, so that it can be checked afterwards.

One file for each rank and start, `ledger/START-RANK.bin`: a line of JSON about the start, then a
record a step, written before the step is made. A record says which entries of the global batch the
rank read, with a digest of the documents and token ranges in them, and the list itself as long as
the file is below its limit; one without entries says that the step is left out. Records are checked
one by one; a process that is killed leaves at most its last one unfinished.
"""

import json
import re
import struct
import zlib
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import TypeAdapter

from train.data.feed import StepData
from train.errors import DataError, RunDirectoryError
from train.storage import record as stored
from train.storage.appended import AppendedFile
from train.storage.record import Count, Version, content_of, parse

Ints = npt.NDArray[np.int64]

FORMAT_VERSION: Final = 1

_RECORD: Final = struct.Struct("<QIII16s")
"""Step, first entry, entries, bytes of the list, digest; then the list, then the checksum."""
_CHECKSUM: Final = struct.Struct("<I")
_BYTES_AT_MOST: Final = 1 << 34
_HEADER_BYTES_AT_MOST: Final = 256
_LIST_BYTES_AT_MOST: Final = 1 << 30
_NAME: Final = re.compile(r"^(\d+)-(\d+)\.bin$")


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run, as one of its ranks saw it.

    Attributes:
        start: number of the start, from 1.
        first_step: steps done before it.
        rank: data rank; ranks that hold parts of one model copy read the same and one writes.
        ranks: data ranks.
        entries: entries of a global batch.
    """

    start: int
    first_step: int
    rank: int
    ranks: int
    entries: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One rank's part of one step.

    Attributes:
        step: steps done, this one included.
        first: its first entry in the global batch.
        entries: how many; none of a step that is left out.
        digest: of `identities`, see `digest_of`.
        listed: `identities`, compressed; empty beyond the file's limit.
    """

    step: int
    first: int
    entries: int
    digest: bytes
    listed: bytes

    @property
    def is_left_out(self) -> bool:
        """Whether it says that the step counts for nothing; it may have been read before."""
        return self.entries == 0

    @property
    def identities(self) -> Ints | None:
        """[p, 6] entry, source, epoch, number, begin, end; None beyond the file's limit."""
        if not self.listed:
            return None
        try:
            content = zlib.decompressobj().decompress(self.listed, _LIST_BYTES_AT_MOST)
            return np.frombuffer(content, "<i8").reshape(6, -1).T.astype(np.int64)
        except (ValueError, zlib.error) as error:
            raise DataError(f"the ledger's list of step {self.step} is none ({error})") from error


def listed(identities: Ints) -> bytes:
    """A list as records hold it; columns are alike, and compress."""
    return zlib.compress(identities.astype("<i8").T.tobytes(), 1)


def digest_of(identities: Ints) -> bytes:
    """16 bytes that no other list of parts, or order of them, has."""
    return xxhash.xxh3_128(np.ascontiguousarray(identities, dtype="<i8").tobytes()).digest()


class LedgerWriter:
    """Appends to one rank's file; each record reaches the system before its step is made.

    So a step that cannot be noted is not made, and the run can save the one before and stop.

    Args:
        directory: of the run's ledger.
        start: what to say about this start.
        limit_bytes: size from which records hold digests only.

    Raises:
        RunDirectoryError: the file cannot be written, or is there already.
    """

    def __init__(self, directory: Path, start: Start, *, limit_bytes: int):
        self._limit_bytes = limit_bytes
        self._path = directory / f"{start.start:05d}-{start.rank:05d}.bin"
        header = {"format_version": FORMAT_VERSION, **asdict(start)}
        header["rows"] = header.pop("entries")
        line = json.dumps(header).encode() + b"\n"
        self._num_bytes = len(line)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = AppendedFile(self._path, is_new=True)
            self._file.append(line)
            self._file.settle()
        except OSError as error:
            raise self._unwritable(error) from error

    def add(self, step: int, data: StepData) -> RunDirectoryError | None:
        """Note what a step has read; why it cannot be noted, for the ranks to agree on first."""
        parts = listed(data.identities) if self._num_bytes < self._limit_bytes else b""
        head = _RECORD.pack(step, data.first, data.entries, len(parts), digest_of(data.identities))
        record = head + parts
        record += _CHECKSUM.pack(zlib.crc32(record))
        self._num_bytes += len(record)
        try:
            self._file.append(record)
        except OSError as error:
            return self._unwritable(error)
        return None

    def settle(self) -> None:
        """Bring what was noted to the disk, before a checkpoint counts on it.

        Raises:
            RunDirectoryError: some of it could not be; the rest is there.
        """
        try:
            self._file.settle()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunDirectoryError:
        return RunDirectoryError(
            f"the ledger {self._path} cannot be written ({error.strerror}): make room there, or "
            "move what is in its place away, and run again to continue"
        )


def next_start(directory: Path) -> int:
    """Number of the start that begins now."""
    return max((start for start, _, _ in _files(directory)), default=0) + 1


def read_ledger(directory: Path) -> dict[int, dict[int, tuple[Start, list[Record]]]]:
    """All records of a run, by start and rank.

    Raises:
        DataError: there are none, or a file was damaged or changed.
    """
    found: dict[int, dict[int, tuple[Start, list[Record]]]] = {}
    for number, rank, path in _files(directory):
        start, records = _read(path)
        if (start.start, start.rank) != (number, rank):
            raise DataError(f"{path} was written for start {start.start}, rank {start.rank}")
        found.setdefault(number, {})[rank] = start, records
    if not found:
        raise DataError(f"there is no ledger in {directory}: no step was made there")
    return found


def _files(directory: Path) -> list[tuple[int, int, Path]]:
    paths = directory.glob("*.bin") if directory.is_dir() else []
    named = ((path, _NAME.match(path.name)) for path in paths)
    return sorted((int(m[1]), int(m[2]), path) for path, m in named if m is not None)


class _Header(stored.Record):
    """The first line: a `Start`, whose entries were called rows."""

    start: Count
    first_step: Count
    rank: Count
    ranks: Count
    rows: Count


_VERSION: Final = TypeAdapter(Version)
_HEADER: Final = TypeAdapter(_Header)


def _read(path: Path) -> tuple[Start, list[Record]]:
    try:
        content = content_of(path, limit_bytes=_BYTES_AT_MOST)
    except FileNotFoundError:
        raise DataError(f"{path} is a link to nothing, or was removed just now") from None
    line, newline, rest = content.partition(b"\n")
    if not newline and len(content) < _HEADER_BYTES_AT_MOST:  # killed as it began
        number, rank = (int(part) for part in path.stem.split("-"))
        return Start(start=number, first_step=-1, rank=rank, ranks=0, entries=0), []
    remedy = "what it said of the run is lost"
    taken = partial(parse, data=line, name=str(path), error=DataError, remedy=remedy)
    version = taken(_VERSION).format_version
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format version {version}; this version reads {FORMAT_VERSION}")
    header = taken(_HEADER).model_dump()
    start = Start(entries=header.pop("rows"), **header)
    records: list[Record] = []
    at = 0
    while at + _RECORD.size <= len(rest):
        step, first, entries, num_bytes, digest = _RECORD.unpack_from(rest, at)
        end = at + _RECORD.size + num_bytes
        if end + _CHECKSUM.size > len(rest):
            break  # the record that the process was killed in
        if _CHECKSUM.unpack_from(rest, end)[0] != zlib.crc32(rest[at:end]):
            raise DataError(f"{path}: the record of step {step} was changed after it was written")
        parts = rest[at + _RECORD.size : end]
        records.append(Record(step=step, first=first, entries=entries, digest=digest, listed=parts))
        at = end + _CHECKSUM.size
    return start, records
