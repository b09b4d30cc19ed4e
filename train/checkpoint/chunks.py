"""Files of slices of tensors, streamed out in the safetensors format.

A file is eight bytes of length, a JSON header and the raw bytes of one slice after another. Each
slice is hashed while it is written, so nothing is read again.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from torch import Tensor

from model.region import Region
from parallel.zero.pages import release_files
from parallel.zero.state import StateSlice, TensorKind
from train.checkpoint.format import Chunk, FileRecord, Index, ParameterRecord, TypeName
from train.storage.place import Place

SLICE_BYTES = 1 << 26
"""Longer slices are cut: a reader that needs a part of one has to hash all of it."""

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls types."""


def cut(slices: Iterable[StateSlice]) -> list[StateSlice]:
    """The same in slices of at most `SLICE_BYTES`, in the order in which a file holds them."""
    parts: list[StateSlice] = []
    for whole in slices:
        length = max(1, SLICE_BYTES // whole.tensor.element_size())
        if whole.tensor.numel() <= length:  # nearly all are: training waits for this
            parts.append(whole)
            continue
        for begin in range(0, whole.tensor.numel(), length):
            part = whole.tensor[begin : begin + length]
            region = whole.region.cut(begin, begin + length)
            parts.append(replace(whole, region=region, tensor=part))
    # Wide types first: readers map the file, and views must be aligned.
    return sorted(parts, key=lambda part: -part.tensor.element_size())


def write_chunks(file: Place | Path, slices: Sequence[StateSlice]) -> Index:
    """Writes slices to a file and brings them to the disk.

    Args:
        file: to create, locally or in a store.
        slices: from `cut`; of each parameter all kinds.

    Returns:
        What the index has to say of them.

    Raises:
        OSError: it could not be written; no file is left.
    """
    file = Place.of(file)
    keyed = {_key(part): part for part in slices}
    assert len(keyed) == len(slices), "a slice is there twice"
    types = {(part.name, part.tensor.dtype) for part in slices}
    assert len(types) == len({name for name, _ in types}), "moments have the type of the value"
    header = _header({key: part.tensor for key, part in keyed.items()})
    chunks: dict[str, dict[TensorKind, list[Chunk]]] = defaultdict(lambda: defaultdict(list))
    with file.create() as sink:
        sink.write(header)
        for key, part in keyed.items():
            data = bytes_of(part.tensor)
            sink.write(data)
            chunks[part.name][part.kind].append(
                Chunk(
                    file=file.name,
                    key=key,
                    box=part.region.box,
                    flat_range=(part.region.start, part.region.stop),
                    xxh3_128=xxhash.xxh3_128(data).hexdigest(),
                )
            )
            release_files()  # state that lives in files does not fit into memory
    parameters = {
        part.name: ParameterRecord(
            shape=list(part.region.shape),
            dtype=cast(TypeName, str(part.tensor.dtype).removeprefix("torch.")),
            trainable=len(chunks[part.name]) > 1,
            tensors=dict(chunks[part.name]),
        )
        for part in slices
        if part.kind == "value"
    }
    num_bytes = len(header) + sum(part.tensor.nbytes for part in slices)
    return Index(parameters=parameters, files={file.name: FileRecord(bytes=num_bytes)})


def _header(tensors: dict[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.nbytes
        entries[key] = {
            "dtype": NAMES[tensor.dtype],
            "shape": [tensor.numel()],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Padded so that the data is aligned when the file is mapped.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _key(part: StateSlice) -> str:
    region = part.region
    is_whole = region.box == Region.whole(region.shape).box
    box = "" if is_whole else "/" + ",".join(f"{a}:{b}" for a, b in region.box)
    return f"{part.name}/{part.kind}{box}/{region.start}"


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor; of one on the host, they are its own memory."""
    host = tensor.detach().to("cpu")
    return host.view(torch.uint8).numpy().data
