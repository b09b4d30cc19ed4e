"""Weights alone: out of any checkpoint, and into one without moments."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.region import Region
from parallel.zero.state import StateSlice
from train.checkpoint.chunks import cut, write_chunks
from train.checkpoint.directory import resolve
from train.checkpoint.format import Index, json_bytes, seal, telling
from train.checkpoint.reader import ChunkReader
from train.errors import CheckpointError
from train.storage.place import Place


def read_values(path: Place | Path) -> dict[str, Tensor]:
    """Whole parameters of a checkpoint, by name, on the host.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    return dict(values_of(path))


def values_of(path: Place | Path, *, trainable: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters of a checkpoint with their names, one after the other.

    Args:
        path: a checkpoint, or anything that `resolve` understands.
        trainable: leave out those that were fixed.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    path = resolve(path)
    index = Index.read(path)
    with ChunkReader(path, index) as reader:
        for name, record in sorted(index.parameters.items()):
            if trainable and not record.trainable:
                continue
            nothing = torch.empty(0, dtype=record.torch_dtype)
            whole = Region.whole(tuple(record.shape))
            wanted = StateSlice(name=name, kind="value", region=whole, tensor=nothing)
            reader.check(wanted)  # before there is room for what an index only claims
            flat = torch.empty(record.num_elements, dtype=record.torch_dtype)
            reader.fill(replace(wanted, tensor=flat))
            yield name, flat.view(record.shape)


def write_values(
    out: Place | Path, values: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Place:
    """Write a checkpoint of weights alone: for generation, evaluation and `init_from`.

    Args:
        out: directory to create.
        values: whole parameters by logical name.
        state: what `state.json` holds; `config` above all.

    Raises:
        CheckpointError: `out` exists, and nothing is overwritten; or it cannot be written.
    """
    slices = [
        StateSlice(
            name=name,
            kind="value",
            region=Region.whole(tuple(value.shape)),
            tensor=value.detach().contiguous().view(-1),
        )
        for name, value in values.items()
    ]
    out = Place.of(out)
    with telling(f"{out} cannot be written", ": choose another place"):
        if out.exists():
            raise CheckpointError(f"{out} exists: choose another place for the checkpoint")
        chunks = write_chunks(out / "chunks-00000.safetensors", cut(slices))
        seal(out, [chunks], json_bytes(dict(state), indent=1))
    return out
