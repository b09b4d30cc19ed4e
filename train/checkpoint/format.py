"""Format of a checkpoint, independent of how many ranks wrote it or will read it.

    step_00000100/
      chunks-00000.safetensors   what rank 0 owned: flat slices of parameters and moments
      chunks-00001.safetensors   ...
      state.json                 step, sequences consumed, resolved config, run id, ...
      index.json                 which slice of which tensor lies where; sizes and checksums

The index is written last: a directory without it is no checkpoint. Nothing here is ever unpickled.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import torch
import xxhash
from pydantic import ConfigDict, Field, TypeAdapter

from model.region import Region
from parallel.zero.state import TensorKind
from train.checkpoint.regions import tiling_fault
from train.errors import CheckpointError, StorageError
from train.storage.place import Place
from train.storage.record import COUNT_BELOW, Count, Record, Version, parse

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
STATE_NAME = "state.json"
INDEX_BYTES_AT_MOST: Final = 1 << 29
STATE_BYTES_AT_MOST: Final = 1 << 26
STEP_NAME: Final = re.compile(r"^step_(\d+)(?:\.(\d+))?$")
"""Names of checkpoints: the step, and which time it was written."""
_REMEDY: Final = "use another checkpoint"
_MOST_BOXES: Final = 1024
"""Of one tensor; no layout splits it into more."""

TypeName = Literal[
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
]
Stated = TypeVar("Stated", bound="State")
Parsed = TypeVar("Parsed")
Extent = tuple[Count, Count]
"""First index and one past the last, as stored."""


class _Strict(Record):
    model_config = ConfigDict(extra="forbid")


class State(Record):
    """What lies beside the tensors; whoever saves it may say more, and has a schema for that.

    Attributes:
        step: steps made so far.
        config: of the run.
    """

    model_config = ConfigDict(extra="allow")

    step: Count
    config: dict[str, Any] = Field(default={})


class Chunk(_Strict):
    """A stored slice of a tensor: `flat_range` of the flattened `box`, itself a part of the tensor.

    Those that have no checksum of their own are covered by that of their file.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.safetensors$")]
    key: str
    box: tuple[Extent, ...]
    flat_range: Extent
    xxh3_128: str | None = None

    def region(self, record: "ParameterRecord") -> Region:
        """Which part it is of the parameter that the record describes."""
        start, stop = self.flat_range
        return Region(shape=tuple(record.shape), box=self.box, start=start, stop=stop)


class ParameterRecord(_Strict):
    """Where one parameter and its moments lie; `dtype` is that of all of them."""

    shape: list[Count]
    dtype: TypeName
    trainable: bool
    tensors: dict[TensorKind, list[Chunk]]

    @property
    def num_elements(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of its elements."""
        return getattr(torch, self.dtype)


class FileRecord(_Strict):
    """Size and checksum of a file; without the latter, every chunk in it has its own."""

    bytes: Count
    xxh3_128: str | None = None


class Index(_Strict):
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
        data = _read(file, limit_bytes=INDEX_BYTES_AT_MOST)
        version = _parsed(_VERSION, file, data).format_version
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{file} has format version {version!r} and this program reads "
                f"{FORMAT_VERSION}: use the program that wrote it"
            )
        index = _parsed(_INDEX, file, data)
        for name, record in index.parameters.items():
            _check_tiling(file, name, record)
        for name, chunks in index.chunks_by_file().items():
            if name not in index.files:
                raise damaged(file, f"it has no size of {name}")
            whole = index.files[name].xxh3_128 is not None
            if not whole and any(chunk.xxh3_128 is None for _, chunk in chunks):
                raise damaged(file, f"it has no checksum of {name}")
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


_INDEX: Final[TypeAdapter[Any]] = TypeAdapter(Index)
_VERSION: Final = TypeAdapter(Version)


def record_of(data: bytes) -> FileRecord:
    """Size and checksum of a file that holds `data`."""
    return FileRecord(bytes=len(data), xxh3_128=xxhash.xxh3_128(data).hexdigest())


def json_bytes(document: Any, *, indent: int | None = None) -> bytes:
    """A document as it is stored."""
    return (json.dumps(document, indent=indent, allow_nan=False) + "\n").encode()


def seal(
    path: Place,
    parts: Iterable[Index],
    state: bytes,
    *,
    guard: Callable[[], object] = lambda: None,
) -> None:
    """Completes a checkpoint whose chunks are on the disk.

    Args:
        path: its directory.
        parts: what the index has to say of the chunks.
        state: what lies beside the tensors, as `json_bytes` gives it.
        guard: raises where the directory is another process's by now; asked just before the index.

    Raises:
        OSError: it cannot be written, or another process has done so meanwhile.
    """
    (path / STATE_NAME).write_once(state)
    index = Index.merged([*parts, Index(parameters={}, files={STATE_NAME: record_of(state)})])
    guard()  # to who has slept: the chunks may be gone
    (path / INDEX_NAME).write_once(json_bytes(index.model_dump(exclude_none=True)))


def stored_state(path: Place, index: Index, schema: type[Stated]) -> Stated:
    """What lies beside the tensors of a checkpoint, such as `step` and `config`.

    Raises:
        CheckpointError: it is missing or damaged, or its step is not that of its directory.
    """
    file = path / STATE_NAME
    data = _read(file, limit_bytes=STATE_BYTES_AT_MOST)
    if STATE_NAME not in index.files:
        raise damaged(path / INDEX_NAME, f"it has no {STATE_NAME}")
    expected = index.files[STATE_NAME]
    if len(data) != expected.bytes:
        raise damaged(file, f"it has {len(data)} bytes and should have {expected.bytes}")
    if record_of(data) != expected:
        raise damaged(file, "its checksum differs from the index")
    state = _parsed(TypeAdapter(schema), file, data)
    named = STEP_NAME.match(path.name)
    if named is not None and int(named[1]) != state.step:
        raise damaged(file, f"step: it is {state.step}, in a directory named {path.name}")
    return state


def damaged(file: Place, fault: str) -> CheckpointError:
    """An error that names the file and what is wrong with it."""
    return CheckpointError(f"{file} is damaged: {fault}; {_REMEDY}")


@contextmanager
def telling(fault: str, remedy: str = f"; {_REMEDY}") -> Generator[None]:
    """Says what a disk or a store refuses in one sentence: the fault, the reason, the remedy."""
    try:
        yield
    except StorageError as error:  # says itself what to do
        raise CheckpointError(f"{fault}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{fault} ({error.strerror or error}){remedy}") from error


def _read(file: Place, *, limit_bytes: int) -> bytes:
    with telling(f"{file} cannot be read"):
        return file.read(limit_bytes=limit_bytes)


def _parsed(schema: TypeAdapter[Parsed], file: Place, data: bytes) -> Parsed:
    return parse(schema, data, name=str(file), error=CheckpointError, remedy=_REMEDY)


def _check_tiling(file: Place, name: str, record: ParameterRecord) -> None:
    kinds = {"value", "exp_avg", "exp_avg_sq"} if record.trainable else {"value"}
    if set(record.tensors) != kinds:
        raise damaged(file, f"{name} has {sorted(record.tensors)}")
    if record.num_elements >= COUNT_BELOW:
        raise damaged(file, f"{name} has the shape {record.shape}")
    for kind, chunks in record.tensors.items():
        if len({chunk.box for chunk in chunks}) > _MOST_BOXES:
            raise damaged(file, f"{name} ({kind}) lies in more than {_MOST_BOXES:,} boxes")
        fault = tiling_fault(tuple(record.shape), [chunk.region(record) for chunk in chunks])
        if fault is not None:
            raise damaged(file, f"of {name} ({kind}), {fault} are not there exactly once")
