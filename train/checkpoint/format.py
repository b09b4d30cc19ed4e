"""Format of a checkpoint, independent of how many ranks wrote it or will read it.

    step_00000100/
      chunks-00000.safetensors   what rank 0 owned: flat slices of parameters and moments
      chunks-00001.safetensors   ...
      state.json                 step, sequences consumed, resolved config, run id, ...
      index.json                 which slice of which tensor lies where; sizes and checksums

The index is written last: a directory without it is no checkpoint. Nothing here is ever unpickled.
"""

import json
from collections import defaultdict
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.region import Range, Region
from parallel.zero.state import TensorKind
from train.checkpoint.regions import tiling_fault
from train.errors import CheckpointError, StorageError
from train.storage.place import Place

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
STATE_NAME = "state.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chunk(_Record):
    """A stored slice of a tensor: `flat_range` of the flattened `box`, itself a part of the tensor.

    Those that have no checksum of their own are covered by that of their file.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.safetensors$")]
    key: str
    box: tuple[Range, ...]
    flat_range: Range
    xxh3_128: str | None = None

    def region(self, record: "ParameterRecord") -> Region:
        """Which part it is of the parameter that the record describes."""
        start, stop = self.flat_range
        return Region(shape=tuple(record.shape), box=self.box, start=start, stop=stop)


class ParameterRecord(_Record):
    """Where one parameter and its moments lie; `dtype` is that of its value."""

    shape: list[int]
    dtype: str
    trainable: bool
    tensors: dict[TensorKind, list[Chunk]]

    @property
    def num_elements(self) -> int:
        """Elements of the whole parameter."""
        return torch.Size(self.shape).numel()


class FileRecord(_Record):
    """Size and checksum of a file; without the latter, every chunk in it has its own."""

    bytes: int
    xxh3_128: str | None = None


class Index(_Record):
    """Everything about a checkpoint, or about a part of one, but the numbers."""

    format_version: Literal[1] = FORMAT_VERSION
    parameters: dict[str, ParameterRecord]
    files: dict[str, FileRecord]

    @classmethod
    def read(cls, path: Place | Path) -> Self:
        """The index of the checkpoint in a step directory.

        Raises:
            CheckpointError: there is none, it is damaged, or of another version.
        """
        file = Place.of(path) / INDEX_NAME
        document = _parsed(file, _read(file))
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
        for name, chunks in index.chunks_by_file().items():
            if name not in index.files:
                raise CheckpointError(f"{file} is damaged: it has no size of {name}")
            whole = index.files[name].xxh3_128 is not None
            if not whole and any(chunk.xxh3_128 is None for _, chunk in chunks):
                raise CheckpointError(f"{file} is damaged: it has no checksum of {name}")
        return index

    @classmethod
    def merged(cls, parts: Iterable["Index"]) -> Self:
        """One of what each rank wrote, chunks in the order of their elements."""
        whole = cls(parameters={}, files={})
        for part in parts:
            whole.files.update(part.files)
            for name, record in part.parameters.items():
                tensors = whole.parameters.setdefault(
                    name, record.model_copy(update={"tensors": {}})
                ).tensors
                for kind, chunks in record.tensors.items():
                    tensors.setdefault(kind, []).extend(chunks)
        for record in whole.parameters.values():
            for chunks in record.tensors.values():
                chunks.sort(key=lambda chunk: (chunk.box, chunk.flat_range))
        return whole

    def chunks_by_file(self) -> dict[str, list[tuple[str, Chunk]]]:
        """The chunks that each file must hold, with the name of their parameter."""
        chunks: dict[str, list[tuple[str, Chunk]]] = defaultdict(list)
        for name, record in self.parameters.items():
            for chunk in chain.from_iterable(record.tensors.values()):
                chunks[chunk.file].append((name, chunk))
        return chunks


def record_of(data: bytes) -> FileRecord:
    """Size and checksum of a file that holds `data`."""
    return FileRecord(bytes=len(data), xxh3_128=xxhash.xxh3_128(data).hexdigest())


def json_bytes(document: Any, *, indent: int | None = None) -> bytes:
    """A document as it is stored."""
    return (json.dumps(document, indent=indent, allow_nan=False) + "\n").encode()


def seal(path: Place, parts: Iterable[Index], state: bytes) -> None:
    """Completes a checkpoint whose chunks are on the disk.

    Args:
        path: its directory.
        parts: what the index has to say of the chunks.
        state: what lies beside the tensors, as `json_bytes` gives it.

    Raises:
        OSError: it cannot be written.
    """
    (path / STATE_NAME).write(state)
    index = Index.merged([*parts, Index(parameters={}, files={STATE_NAME: record_of(state)})])
    (path / INDEX_NAME).write(json_bytes(index.model_dump(exclude_none=True)))


def stored_state(path: Place, index: Index) -> dict[str, Any]:
    """What lies beside the tensors of a checkpoint, such as `step` and `config`.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    file = path / STATE_NAME
    data = _read(file)
    if STATE_NAME not in index.files:
        raise CheckpointError(f"{path / INDEX_NAME} is damaged: it has no {STATE_NAME}")
    expected = index.files[STATE_NAME]
    if len(data) != expected.bytes:
        raise damaged(file, f"it has {len(data)} bytes and should have {expected.bytes}")
    if record_of(data) != expected:
        raise damaged(file, "its checksum differs from the index")
    return _parsed(file, data)


def damaged(file: Place, fault: str) -> CheckpointError:
    """An error that names the file and what is wrong with it."""
    return CheckpointError(f"{file} is damaged: {fault}; use another checkpoint")


@contextmanager
def telling(fault: str, remedy: str = "; use another checkpoint") -> Generator[None]:
    """Says what a disk or a store refuses in one sentence: the fault, the reason, the remedy."""
    try:
        yield
    except StorageError as error:  # says itself what to do
        raise CheckpointError(f"{fault}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{fault} ({error.strerror or error}){remedy}") from error


def _read(file: Place) -> bytes:
    with telling(f"{file} cannot be read"):
        return file.read()


def _parsed(file: Place, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise damaged(file, str(error)) from error
    if not isinstance(document, dict):
        raise damaged(file, "it holds no object")
    return document


def _check_tiling(file: Place, name: str, record: ParameterRecord) -> None:
    kinds = {"value", "exp_avg", "exp_avg_sq"} if record.trainable else {"value"}
    if set(record.tensors) != kinds:
        raise CheckpointError(f"{file} is damaged: {name} has {sorted(record.tensors)}")
    for kind, chunks in record.tensors.items():
        fault = tiling_fault(tuple(record.shape), [chunk.region(record) for chunk in chunks])
        if fault is not None:
            raise CheckpointError(
                f"{file} is damaged: of {name} ({kind}), {fault} are not there exactly once"
            )
