"""What a checkpoint looks like on disk, independent of how many ranks wrote it or will read it.

    step_00000100/
      chunks-00000.safetensors   what rank 0 owned: flat pieces of parameters and moments
      chunks-00001.safetensors   ...
      state.json                 step, samples consumed, resolved config, run id, ...
      index.json                 which piece of which tensor lies where; sizes and checksums

Nothing here is ever unpickled.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from train.errors import CheckpointError

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
STATE_NAME = "state.json"
READ_BYTES = 1 << 22

TensorKind = Literal["value", "exp_avg", "exp_avg_sq"]
"""The weights (fp32 masters of trainable parameters), and AdamW's two moments."""

Range = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
"""First element and one past the last."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chunk(_Record):
    """A piece of a tensor: `flat_range` of the flattened `box`, itself a part of the tensor."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.safetensors$")]
    key: str
    box: list[Range]
    flat_range: Range


class ParameterRecord(_Record):
    """Where one parameter and its moments lie; `dtype` is that of its value."""

    shape: list[Annotated[int, Field(ge=0)]]
    dtype: str
    trainable: bool
    tensors: dict[TensorKind, list[Chunk]]

    @property
    def num_elements(self) -> int:
        """Elements of the whole parameter."""
        return torch.Size(self.shape).numel()


class FileRecord(_Record):
    """Size and checksum of a file."""

    bytes: int
    xxh3_128: str

    @classmethod
    def of(cls, file: Path) -> Self:
        """Reads the file and takes its size and checksum."""
        digest = xxhash.xxh3_128()
        num_bytes = 0
        with file.open("rb") as opened:
            while block := opened.read(READ_BYTES):
                digest.update(block)
                num_bytes += len(block)
        return cls(bytes=num_bytes, xxh3_128=digest.hexdigest())


class Index(_Record):
    """Everything about a checkpoint but the numbers."""

    format_version: Literal[1] = FORMAT_VERSION
    parameters: dict[str, ParameterRecord]
    files: dict[str, FileRecord]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The index of the checkpoint in a step directory.

        Raises:
            CheckpointError: there is none, it is damaged, or of another version.
        """
        file = path / INDEX_NAME
        document = read_json(file)
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{file} has format version {version!r} and this program reads "
                f"{FORMAT_VERSION}: use the program that wrote it"
            )
        try:
            index = cls.model_validate(document)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise CheckpointError(f"{file} is damaged: {where}: {fault['msg']}") from error
        for name, record in index.parameters.items():
            _check_tiling(file, name, record)
        for name in index.chunks_by_file():
            if name not in index.files:
                raise CheckpointError(f"{file} is damaged: it has no checksum of {name}")
        return index

    def chunks_by_file(self) -> dict[str, list[Chunk]]:
        """The pieces that each file must hold."""
        chunks: dict[str, list[Chunk]] = defaultdict(list)
        for record in self.parameters.values():
            for chunk in chain.from_iterable(record.tensors.values()):
                chunks[chunk.file].append(chunk)
        return chunks


def write_chunks(file: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Writes pieces to a file and brings them to the disk; returns its size and checksum."""
    save_file(dict(tensors), file)
    # The library makes files that nobody else may read; colleagues share file systems.
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
    flush(file)
    return FileRecord.of(file)


def write_json(file: Path, document: Any, *, indent: int | None = None) -> FileRecord:
    """Writes a document and brings it to the disk; returns its size and checksum."""
    file.write_text(json.dumps(document, indent=indent, allow_nan=False) + "\n")
    flush(file)
    return FileRecord.of(file)


def read_json(file: Path) -> dict[str, Any]:
    """A document that must be an object.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        document = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} is damaged: it holds no object")
    return document


def flush(path: Path) -> None:
    """Brings a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_files(path: Path, index: Index, names: Iterable[str]) -> None:
    """Compares files with the index: size, checksum, and what pieces they hold.

    Raises:
        CheckpointError: one is missing or differs; the message names it.
    """
    chunks_of = index.chunks_by_file()
    for name in names:
        file, expected = path / name, index.files[name]
        try:
            if file.stat().st_size != expected.bytes:
                raise CheckpointError(
                    f"{file} is damaged: it has {file.stat().st_size} bytes and should have "
                    f"{expected.bytes}; use another checkpoint"
                )
            found = FileRecord.of(file)
        except OSError as error:
            raise CheckpointError(
                f"{file} cannot be read ({error.strerror}); use another checkpoint"
            ) from error
        if found != expected:
            raise CheckpointError(
                f"{file} is damaged: its checksum differs from the index; use another checkpoint"
            )
        with _opened(file) if chunks_of[name] else nullcontext() as opened:
            for chunk in chunks_of[name]:
                _check_piece(file, opened, chunk)


class ChunkReader:
    """Reads parts of tensors from the chunks of a checkpoint, whoever wrote which piece."""

    def __init__(self, path: Path, index: Index) -> None:
        self._path = path
        self._index = index
        self._files: dict[str, Any] = {}

    def fill(self, target: Tensor, *, name: str, kind: TensorKind, start: int) -> None:
        """Copies elements [start, start + len(target)) of a flattened tensor into a flat view.

        The files must have passed `check_files`.
        """
        stop = start + target.numel()
        num_filled = 0
        for chunk in self._index.parameters[name].tensors[kind]:
            first, last = max(start, chunk.flat_range[0]), min(stop, chunk.flat_range[1])
            if first >= last:
                continue
            offset = chunk.flat_range[0]
            piece = self._read(chunk, first - offset, last - offset)
            target[first - start : last - start].copy_(piece)
            num_filled += last - first
        # The index tiles every tensor exactly once, so the count proves every element.
        assert num_filled == target.numel(), (name, kind, start, stop)

    def _read(self, chunk: Chunk, start: int, stop: int) -> Tensor:
        if chunk.file not in self._files:
            self._files[chunk.file] = _opened(self._path / chunk.file)
        return self._files[chunk.file].get_slice(chunk.key)[start:stop]


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; use another checkpoint") from error


def _check_piece(file: Path, opened: Any, chunk: Chunk) -> None:
    try:
        shape = opened.get_slice(chunk.key).get_shape()
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}; use another checkpoint") from error
    if shape != [chunk.flat_range[1] - chunk.flat_range[0]]:
        raise CheckpointError(
            f"{file} is damaged: {chunk.key} has shape {shape}, not as the index says; "
            f"use another checkpoint"
        )


def merge(written: Iterable[dict[str, ParameterRecord]]) -> dict[str, ParameterRecord]:
    """One record a parameter from what each rank wrote, chunks in the order of their elements."""
    merged: dict[str, ParameterRecord] = {}
    for records in written:
        for name, record in records.items():
            chunks = dict(merged[name].tensors) if name in merged else {}
            for kind, more in record.tensors.items():
                chunks[kind] = sorted([*chunks.get(kind, []), *more], key=_by_start)
            merged[name] = record.model_copy(update={"tensors": chunks})
    return merged


def _by_start(chunk: Chunk) -> int:
    return chunk.flat_range[0]


def _check_tiling(file: Path, name: str, record: ParameterRecord) -> None:
    kinds = {"value", "exp_avg", "exp_avg_sq"} if record.trainable else {"value"}
    if set(record.tensors) != kinds:
        raise CheckpointError(f"{file} is damaged: {name} has {sorted(record.tensors)}")
    whole = [(0, size) for size in record.shape]
    for kind, chunks in record.tensors.items():
        if any(chunk.box != whole for chunk in chunks):
            raise CheckpointError(
                f"{file} holds {name} in boxes, as tensor parallelism writes it, which this "
                f"program cannot read: use the program that wrote it"
            )
        bounds = [(0, 0), *(chunk.flat_range for chunk in chunks)]
        bounds.append((record.num_elements, record.num_elements))
        for (_, end), (begin, _) in pairwise(bounds):
            if begin != end:
                raise CheckpointError(
                    f"{file} is damaged: elements {min(begin, end)} to {max(begin, end)} of "
                    f"{name} ({kind}) are not there exactly once"
                )
