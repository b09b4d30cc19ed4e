"""Gradient norms of blocks are those of one process without ZeRO, in every layout."""

from collections import defaultdict
from itertools import takewhile

import pytest
import torch

from model.loss import Loss
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from tests.distributed.semicausal_runs import Cell, build, engine_of, microbatches
from tools.ranks import RankPool
from train.step import reseed, train_step

CELLS = [
    Cell(zero=0),
    Cell(data=2, zero=1, microbatches=2),
    Cell(data=2, zero=2),
    Cell(data=2, zero=3),
    Cell(tensor=2, sequence_parallel=True, zero=1),
    Cell(pipeline=2, zero=1, tied=True, microbatches=2),
    Cell(pipeline=2, zero=0, chunks=2, microbatches=2, precision="bf16"),
]


def _by_ranks(cell: Cell) -> dict[str, float]:
    engine = engine_of(cell)
    reseed(7, step=0, mesh=engine.mesh)
    result = train_step(engine, microbatches(cell, 0, rank=engine.mesh.data_rank))
    engine.close()
    return result.gradient_norms


def _alone(cell: Cell) -> dict[str, float]:
    model = build(cell.alone(), build_mesh(LayoutConfig(), World.here(torch.device("cpu"))))
    (batch,) = microbatches(cell.alone(), 0)
    result = model(batch)
    assert isinstance(result, Loss)
    (result.total / batch.num_scored).backward()
    squares: defaultdict[str, float] = defaultdict(float)
    for name, parameter in model.named_parameters():
        *where, _ = name.split(".")
        number = next((part for part in where if part.isdecimal()), None)
        if number is not None:
            where = [*takewhile(lambda part: not part.isdecimal(), where), number]
        assert parameter.grad is not None
        squares[".".join(where)] += parameter.grad.double().square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.layout} zero{cell.zero}")
def test_norms_of_parts(rank_pools: dict[int, RankPool], cell: Cell) -> None:
    first, *others = rank_pools[cell.ranks].run(_by_ranks, cell)
    assert all(other == first for other in others)
    expected = _alone(cell)
    assert {"decoder.embedding", "decoder.blocks.1", "encoders.text.blocks.0"} < set(first)
    assert first == pytest.approx(expected, rel=1e-5 if cell.precision == "fp32" else 3e-2)
