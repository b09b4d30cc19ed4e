"""Files of tensor pieces, streamed out in the safetensors format.

A file is eight bytes of length, a JSON header and the raw bytes of one piece after another. Each
piece is hashed while it is written, so nothing is read again.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from parallel.region import Region
from parallel.zero.pages import release_files
from parallel.zero.state import TensorKind
from train.checkpoint.format import Chunk, FileRecord, Index, ParameterRecord
from train.storage.place import Place

PIECE_BYTES = 1 << 26
"""Longer pieces are cut: a reader that needs a part of a piece has to hash all of it."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """What one rank writes of one tensor.

    Attributes:
        name: logical name of the parameter.
        kind: its value or a moment.
        region: which part of the parameter.
        tensor: [N] its elements, on any device.
    """

    name: str
    kind: TensorKind
    region: Region
    tensor: Tensor


def cut(pieces: Iterable[Piece]) -> list[Piece]:
    """The same as pieces of at most `PIECE_BYTES`, in the order in which a file holds them."""
    parts: list[Piece] = []
    for piece in pieces:
        length = max(1, PIECE_BYTES // piece.tensor.element_size())
        for begin in range(0, piece.tensor.numel(), length):
            part = piece.tensor[begin : begin + length]
            region = piece.region.cut(begin, begin + length)
            parts.append(replace(piece, region=region, tensor=part))
    # Wide types first: readers map the file, and views must be aligned.
    return sorted(parts, key=lambda piece: -piece.tensor.element_size())


def write_chunks(file: Place | Path, pieces: Sequence[Piece]) -> Index:
    """Writes pieces to a file and brings them to the disk.

    Args:
        file: to create, locally or in a store.
        pieces: from `cut`; of each parameter all kinds.

    Returns:
        What the index has to say of them.

    Raises:
        OSError: it could not be written; no file is left.
    """
    file = Place.of(file)
    keyed = {_key(piece): piece for piece in pieces}
    assert len(keyed) == len(pieces), "a piece is there twice"
    header = _header({key: piece.tensor for key, piece in keyed.items()})
    chunks: dict[str, dict[TensorKind, list[Chunk]]] = defaultdict(lambda: defaultdict(list))
    with file.create() as sink:
        sink.write(header)
        for key, piece in keyed.items():
            data = bytes_of(piece.tensor)
            sink.write(data)
            chunks[piece.name][piece.kind].append(
                Chunk(
                    file=file.name,
                    key=key,
                    box=piece.region.box,
                    flat_range=(piece.region.start, piece.region.stop),
                    xxh3_128=xxhash.xxh3_128(data).hexdigest(),
                )
            )
            release_files()  # state that lives in files does not fit into memory
    parameters = {
        piece.name: ParameterRecord(
            shape=list(piece.region.shape),
            dtype=str(piece.tensor.dtype).removeprefix("torch."),
            trainable=len(chunks[piece.name]) > 1,
            tensors=dict(chunks[piece.name]),
        )
        for piece in pieces
        if piece.kind == "value"
    }
    num_bytes = len(header) + sum(piece.tensor.nbytes for piece in pieces)
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


def _key(piece: Piece) -> str:
    region = piece.region
    is_whole = region.box == Region.whole(region.shape).box
    box = "" if is_whole else "/" + ",".join(f"{a}:{b}" for a, b in region.box)
    return f"{piece.name}/{piece.kind}{box}/{region.start}"


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor; of one on the host, they are its own memory."""
    host = tensor.detach().to("cpu")
    return host.view(torch.uint8).numpy().data
