"""What compiled blocks keep for the backward under ZeRO-3: no weight that was gathered."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from tests.distributed.semicausal_runs import Cell, engine_of, microbatches
from tools.ranks import RankPool

CELL = Cell(zero=3, compiled="aot_eager")


def shapes_kept(cell: Cell) -> tuple[int, set[tuple[int, ...]]]:
    """How many graphs wait for the backward, and which shapes of matrices they keep."""
    engine = engine_of(cell)
    module: Any = engine.module
    weights = {tuple(getattr(p, "ds_shape", p.shape)) for p in module.parameters()}
    weights = {shape for pair in weights if len(pair) == 2 for shape in (pair, pair[::-1])}
    todo, seen = [engine(microbatches(cell, 0)[0]).total.grad_fn], set[Any]()
    graphs, kept = 0, list[Tensor]()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [behind for behind, _ in node.next_functions]
        if "Compiled" in type(node).__name__:
            graphs += 1
            kept += [tensor for tensor in node.saved_tensors if tensor is not None]
    return graphs, {tuple(tensor.shape) for tensor in kept} & weights


@pytest.mark.long
def test_gathered_weights_are_not_kept(rank_pools: dict[int, RankPool]) -> None:
    blocks = 5 + 2
    ((graphs, shapes),) = rank_pools[1].run(shapes_kept, CELL)
    assert graphs == blocks
    assert not shapes, "they would stay in memory until the backward"
    ((graphs, shapes),) = rank_pools[1].run(shapes_kept, replace(CELL, zero=1))
    assert graphs == blocks
    assert (96, 32) in shapes, "parameters that stay are saved as they are"
