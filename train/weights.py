"""Weights alone: out of any checkpoint, and into one without moments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train import checkpoint_directory
from train.checkpoint_format import (
    INDEX_NAME,
    STATE_NAME,
    Chunk,
    ChunkReader,
    Index,
    ParameterRecord,
    check_files,
    write_chunks,
    write_json,
)
from train.errors import CheckpointError

CHUNKS = "chunks-00000.safetensors"


def read_values(path: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """Whole parameters of a checkpoint whose names begin with `prefix`, by name, on the host.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    path = checkpoint_directory.resolve(path)
    index = Index.read(path)
    check_files(path, index, index.files)
    reader = ChunkReader(path, index)
    values: dict[str, Tensor] = {}
    for name, record in index.parameters.items():
        if name.startswith(prefix):
            flat = torch.empty(record.num_elements, dtype=getattr(torch, record.dtype))
            reader.fill(flat, name=name, kind="value", start=0)
            values[name] = flat.view(record.shape)
    return values


def write_values(out: Path, values: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint of weights alone: for generation, evaluation and `init_from`.

    Args:
        out: directory to create.
        values: whole parameters by logical name.
        state: what `state.json` holds; `config` above all.

    Raises:
        CheckpointError: `out` exists; nothing is overwritten.
    """
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise CheckpointError(f"{out} exists: choose another place for the checkpoint") from None
    tensors = {name: value.contiguous().view(-1) for name, value in values.items()}
    files = {
        CHUNKS: write_chunks(out / CHUNKS, tensors),
        STATE_NAME: write_json(out / STATE_NAME, dict(state)),
    }
    parameters = {
        name: ParameterRecord(
            shape=list(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            trainable=False,  # without moments, like a frozen one
            tensors={
                "value": [
                    Chunk(
                        file=CHUNKS,
                        key=name,
                        box=[(0, size) for size in value.shape],
                        flat_range=(0, value.numel()),
                    )
                ]
            },
        )
        for name, value in values.items()
    }
    # The index comes last: without it, the directory is no checkpoint.
    write_json(out / INDEX_NAME, Index(parameters=parameters, files=files).model_dump())
    return out
