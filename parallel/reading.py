"""Reading with caches through an engine: all ranks together are one reader, and hear the same.

Each rank keeps the keys and values of the layers and heads that it holds. The logits are sent from
one rank to all, so that all pick the same tokens and go on alike, whatever their hardware rounds.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from model.reading import Read, Reading
from model.semicausal import SemiCausal
from parallel.forward import Engine, FrozenEngine
from parallel.mesh import Mesh


def reader(engine: Engine, *, apart: bool = False) -> Read:
    """The model as it stands, on all its ranks.

    Call it inside `engine.evaluating()`. Every rank must read the same: under ZeRO-3 no copy of the
    model has weights without the others.

    Args:
        engine: holds this rank's part.
        apart: whether each copy of the model reads something else. Not under ZeRO-3.
    """
    model, mesh = engine.module, engine.mesh
    assert isinstance(model, SemiCausal)
    group = mesh.model_group if apart else None
    others = mesh.model_size if apart else mesh.world.size
    source = _rank_of(
        mesh, stage=mesh.pipeline_size - 1, copy=mesh.data_rank if apart else 0, place=0
    )

    def read(reading: Reading) -> Tensor:
        in_training = not isinstance(engine, FrozenEngine)
        assert not (in_training and torch.is_inference_mode_enabled()), "it is live: say so"
        if model.sequence_parallel:
            reading = reading.padded(mesh.tensor_size)
        found = _through_stages(engine, model, reading)
        if found is not None and mesh.tensor_group is not None:
            parts = [torch.empty_like(found) for _ in range(mesh.tensor_size)]
            dist.all_gather(parts, found.contiguous(), group=mesh.tensor_group)
            found = torch.cat(parts, dim=-1)
        vocabulary = model.config.decoder.vocabulary
        if found is None:
            found = torch.empty(len(reading.wanted), vocabulary, device=mesh.world.device)
        logits = found[:, :vocabulary].contiguous()
        if others > 1:
            dist.broadcast(logits, src=source, group=group)
        return logits

    return read


def _through_stages(engine: Engine, model: SemiCausal, reading: Reading) -> Tensor | None:
    """Logits of this rank's part of the vocabulary on the last stage, None on the others."""
    mesh = engine.mesh
    stages, num_pieces = mesh.pipeline_size, mesh.pipeline_size * len(model.pieces)

    def beside(stage: int) -> int:
        """The rank of another stage that holds the same heads."""
        return _rank_of(mesh, stage=stage, copy=mesh.data_rank, place=mesh.tensor_rank)

    rows: Tensor | None = None
    for piece in range(mesh.pipeline_rank, num_pieces, stages):
        if piece > 0:
            rows = _room_for_rows(model, mesh, reading)
            dist.recv(rows, src=beside((piece - 1) % stages))
        rows = engine(reading, rows, piece=piece // stages)
        assert isinstance(rows, Tensor)
        if piece < num_pieces - 1:
            dist.send(rows.contiguous(), dst=beside((piece + 1) % stages))
    return rows if mesh.is_last_stage else None


def _room_for_rows(model: SemiCausal, mesh: Mesh, reading: Reading) -> Tensor:
    num_rows = reading.tokens.numel()
    if model.sequence_parallel:
        num_rows //= mesh.tensor_size
    like = next(model.parameters())
    return like.new_empty(num_rows, model.config.decoder.width)


def _rank_of(mesh: Mesh, *, stage: int, copy: int, place: int) -> int:
    """A rank among all: of a copy of the model, a stage of it, and a place in the tensor group."""
    return copy * mesh.model_size + stage * mesh.tensor_size + place
