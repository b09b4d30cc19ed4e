"""Reading with caches through an engine: all ranks together are one reader, and hear the same.

Each rank keeps the keys and values of the layers and heads that it holds. The logits are sent from
one rank to all, so that all pick the same tokens and go on alike, whatever their hardware rounds.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.reading import Read, Reading
from model.semicausal import SemiCausal
from parallel.mesh import Mesh
from parallel.zero.engine import ZeroEngine


def reader(engine: ZeroEngine) -> Read:
    """The model as it stands, on all its ranks.

    Every rank must read the same, inside `engine.evaluating()`. Copies of the model all compute it:
    under ZeRO-3 none has weights without the others.
    """
    model, mesh = engine.module, engine.mesh
    assert isinstance(model, SemiCausal)
    # Without ZeRO nothing hooks the call. Under ZeRO-3 the engine's own begins a trace.
    compute: Any = engine

    def read(reading: Reading) -> Tensor:
        if model.sequence_parallel:
            reading = reading.padded(mesh.tensor_size)
        found = _through_stages(compute, model, mesh, reading)
        if found is not None and mesh.tensor_group is not None:
            parts = [torch.empty_like(found) for _ in range(mesh.tensor_size)]
            dist.all_gather(parts, found.contiguous(), group=mesh.tensor_group)
            found = torch.cat(parts, dim=-1)
        vocabulary = model.config.decoder.vocabulary
        if found is None:
            found = torch.empty(len(reading.wanted), vocabulary, device=mesh.world.device)
        logits = found[:, :vocabulary].contiguous()
        if mesh.world.size > 1:
            dist.broadcast(logits, src=_rank_of(mesh, stage=mesh.pipeline_size - 1, first=True))
        return logits

    return read


def _through_stages(compute: Any, model: SemiCausal, mesh: Mesh, reading: Reading) -> Tensor | None:
    """Logits of this rank's part of the vocabulary on the last stage, None on the others."""
    stages, num_pieces = mesh.pipeline_size, mesh.pipeline_size * len(model.pieces)
    rows: Tensor | None = None
    for piece in range(num_pieces):
        stage = piece % stages
        if stage != mesh.pipeline_rank:
            continue
        if piece > 0 and stages > 1:
            rows = _room_for_rows(model, mesh, reading)
            dist.recv(rows, src=_rank_of(mesh, stage=(piece - 1) % stages))
        rows = compute(reading, rows, piece=piece // stages)
        assert isinstance(rows, Tensor)
        if piece < num_pieces - 1 and stages > 1:
            dist.send(rows.contiguous(), dst=_rank_of(mesh, stage=(piece + 1) % stages))
    return rows if mesh.is_last_stage else None


def _room_for_rows(model: SemiCausal, mesh: Mesh, reading: Reading) -> Tensor:
    num_rows = reading.tokens.numel()
    if model.sequence_parallel:
        num_rows //= mesh.tensor_size
    like = next(model.parameters())
    return like.new_empty(num_rows, model.config.decoder.width)


def _rank_of(mesh: Mesh, *, stage: int, first: bool = False) -> int:
    """The rank of a stage among all: this copy's beside this rank, or the first of all."""
    copy, place = (0, 0) if first else (mesh.data_rank, mesh.tensor_rank)
    return copy * mesh.model_size + stage * mesh.tensor_size + place
