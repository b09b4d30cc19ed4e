"""Reads chunks of tensors back, each hashed before it counts, into whatever slice is asked for.

A chunk that goes whole into memory on the host is read right there; of others, what is needed is
copied. Nothing is read twice, and nothing is unpickled.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

import torch
import xxhash
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from parallel.zero.state import StateSlice
from train.checkpoint.chunks import NAMES, SLICE_BYTES, bytes_of
from train.checkpoint.format import INDEX_NAME, Chunk, FileRecord, Index, damaged, telling
from train.checkpoint.regions import copy_overlap, overlap
from train.errors import CheckpointError
from train.storage.place import Place, Source
from train.storage.record import Count

_BLOCK_BYTES: Final = 1 << 18
"""Of a file of this host, what is hashed while a core's own cache still has it."""
_HEADER_BYTES_AT_MOST = 100_000_000
"""What the safetensors library accepts."""


class _Entry(TypedDict):
    """Where a slice lies in its file, and what it is there."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


# What is no slice is metadata, which nobody needs.
_HEADER: Final = TypeAdapter(dict[str, _Entry | dict[str, str]])


@dataclass(frozen=True, kw_only=True)
class _File:
    source: Source
    header: dict[str, _Entry]
    data_start: int


class ChunkReader:
    """Reads parts of tensors from the chunks of a checkpoint, whoever wrote which one.

    Use it as a context: it keeps files open.
    """

    def __init__(self, path: Place | Path, index: Index) -> None:
        self._path = Place.of(path)
        self._index = index
        self._files: dict[str, _File] = {}
        self._exits = ExitStack()
        self._room = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> "ChunkReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def check(self, wanted: StateSlice) -> None:
        """Sees that the files needed for a slice are there and whole in size.

        The bytes themselves are looked at when they are read.

        Raises:
            CheckpointError: names the file, what is wrong with it, and the parameter.
        """
        for chunk in needed(self._index, wanted):
            self._opened(wanted.name, chunk)

    def fill(self, wanted: StateSlice) -> None:
        """Copies what is stored into a slice, whose tensor is of any type, on any device.

        Raises:
            CheckpointError: a chunk is damaged or cannot be read; the message names file and
                parameter. The slice may be partly filled.
        """
        num_filled = 0
        record = self._index.parameters[wanted.name]
        for chunk in needed(self._index, wanted):
            opened = self._opened(wanted.name, chunk)
            dtype = record.torch_dtype
            whole = _whole_part(wanted, chunk, dtype)
            stored = self._buffer(chunk, dtype) if whole is None else whole
            self._read(stored, wanted.name, chunk, opened)
            if whole is None:
                at = chunk.region(record)
                num_filled += copy_overlap(wanted.tensor, wanted.region, stored, at)
            else:
                num_filled += whole.numel()
        # The index tiles every tensor exactly once, so the count proves every element.
        assert num_filled == wanted.tensor.numel() == wanted.region.num_elements, wanted

    def faults(self, *, only: str | None = None) -> Iterator[str]:
        """Everything wrong with the chunks of the checkpoint; reads all of it.

        Args:
            only: look at this file alone.
        """
        for file, chunks in sorted(self._index.chunks_by_file().items()):
            if only not in (None, file):
                continue
            for name, chunk in chunks:
                try:
                    opened = self._opened(name, chunk)
                    dtype = self._index.parameters[name].torch_dtype
                    self._read(self._buffer(chunk, dtype), name, chunk, opened)
                except CheckpointError as error:
                    yield str(error)
                    if file not in self._files:
                        break  # the fault is the file's
            if file in self._files:
                unknown = self._files[file].header.keys() - {chunk.key for _, chunk in chunks}
                for key in sorted(unknown):
                    yield str(damaged(self._path / INDEX_NAME, f"it lacks {key} of {file}"))

    def _opened(self, name: str, chunk: Chunk) -> _File:
        file = self._path / chunk.file
        opened = self._file(name, chunk.file)
        num_elements = chunk.flat_range[1] - chunk.flat_range[0]
        num_bytes = opened.source.num_bytes - opened.data_start
        # What a slice is, its checksum does not say: both must say the same.
        dtype = self._index.parameters[name].torch_dtype
        fault = _entry_fault(opened.header.get(chunk.key), num_elements, dtype, num_bytes)
        if fault is not None:
            raise damaged(file, f"its slice {chunk.key} of {name} {fault}")
        return opened

    def _file(self, name: str, file_name: str) -> _File:
        file = self._path / file_name
        if file_name not in self._files:
            with telling(f"{file}, which holds {name}, cannot be read"):
                source = file.open()
                self._exits.callback(source.close)
                try:
                    self._files[file_name] = _checked(file, source, self._index.files[file_name])
                except CheckpointError as error:
                    raise CheckpointError(f"{error} (it holds {name})") from error
        return self._files[file_name]

    def _read(self, into: Tensor, name: str, chunk: Chunk, opened: _File) -> None:
        file = self._path / chunk.file
        begin, _ = opened.header[chunk.key]["data_offsets"]
        data, digest = bytes_of(into), xxhash.xxh3_128()
        # A store is asked for all at once.
        at_once = len(data) if file.is_remote else _BLOCK_BYTES
        for start in range(0, len(data), at_once or 1):
            block = data[start : start + at_once]
            with telling(f"{file}, which holds {name}, cannot be read"):
                opened.source.read_into(block, offset=opened.data_start + begin + start)
            digest.update(block)
        if chunk.xxh3_128 not in (None, digest.hexdigest()):
            fault = f"the checksum of its slice {chunk.key} of {name} differs from the index"
            raise damaged(file, fault)

    def _buffer(self, chunk: Chunk, dtype: torch.dtype) -> Tensor:
        num_bytes = (chunk.flat_range[1] - chunk.flat_range[0]) * dtype.itemsize
        if self._room.numel() < num_bytes:
            self._room = torch.empty(num_bytes, dtype=torch.uint8)
        return self._room[:num_bytes].view(dtype)


def needed(index: Index, wanted: StateSlice) -> Iterator[Chunk]:
    """The chunks that hold some of a slice."""
    record = index.parameters[wanted.name]
    chunks = record.tensors[wanted.kind]
    return (chunk for chunk in chunks if overlap(wanted.region, chunk.region(record)))


def _whole_part(wanted: StateSlice, chunk: Chunk, dtype: torch.dtype) -> Tensor | None:
    """Where in a slice a whole chunk goes, if it can be read there without a copy."""
    (first, last), region, target = chunk.flat_range, wanted.region, wanted.tensor
    if region.box != chunk.box or target.dtype != dtype or target.device.type != "cpu":
        return None
    if first < region.start or last > region.stop:
        return None
    return target[first - region.start : last - region.start]


def _checked(file: Place, source: Source, expected: FileRecord) -> _File:
    if source.num_bytes != expected.bytes:
        raise damaged(file, f"it has {source.num_bytes} bytes and should have {expected.bytes}")
    length = int.from_bytes(_read_bytes(source, 0, 8), "little")
    no_header = damaged(file, "its header is no safetensors header")
    if length > min(source.num_bytes - 8, _HEADER_BYTES_AT_MOST):
        raise no_header
    try:
        found = _HEADER.validate_json(bytes(_read_bytes(source, 8, length)), strict=True)
    except ValidationError as error:
        raise no_header from error
    header = {key: entry for key, entry in found.items() if _is_slice(entry)}
    if expected.xxh3_128 is not None:
        # As the first writer left it: no chunk has a checksum of its own.
        digest = xxhash.xxh3_128()
        for begin in range(0, source.num_bytes, SLICE_BYTES):
            digest.update(_read_bytes(source, begin, SLICE_BYTES))
        if digest.hexdigest() != expected.xxh3_128:
            raise damaged(file, "its checksum differs from the index")
    return _File(source=source, header=header, data_start=8 + length)


def _is_slice(entry: _Entry | dict[str, str]) -> TypeGuard[_Entry]:
    return isinstance(entry.get("data_offsets"), tuple)


def _entry_fault(
    entry: _Entry | None, num_elements: int, dtype: torch.dtype, num_bytes: int
) -> str | None:
    """What is wrong with a header's entry of a chunk, in a file with so many bytes of data."""
    if entry is None:
        return "is not there"
    begin, end = entry["data_offsets"]
    if (entry["dtype"], entry["shape"]) != (NAMES[dtype], [num_elements]):
        return "is not as the index says"
    if end - begin != num_elements * dtype.itemsize:
        return "is not as the index says"
    return None if end <= num_bytes else "lies outside the file"


def _read_bytes(source: Source, offset: int, length: int) -> bytearray:
    """Bytes from an offset on, as many as there are."""
    data = bytearray(max(0, min(length, source.num_bytes - offset)))
    source.read_into(memoryview(data), offset=offset)
    return data
