"""Eight ranks, and weights at the end of a longer training."""

import pytest

from tests.distributed.parity.plan import TRAINED_STEPS
from tests.distributed.parity.results import WEIGHT_TOLERANCE, compared
from tests.distributed.semicausal_runs import Cell
from tools.ranks import RankPool

TRAINED = Cell(tensor=2, pipeline=2, zero=3, microbatches=2, steps=TRAINED_STEPS)
EIGHT = (
    Cell(tensor=2, pipeline=2, data=2, zero=3, microbatches=2, spans="first rank"),
    Cell(tensor=2, pipeline=2, data=2, sequence_parallel=True, zero=2, microbatches=4, tied=False),
)


def test_twenty_steps_give_the_weights_of_one_process(rank_pools: dict[int, RankPool]) -> None:
    result = compared(rank_pools[TRAINED.ranks], TRAINED, {})
    assert result.fault() is None
    assert result.weight_difference is not None
    assert 0 < result.weight_difference <= WEIGHT_TOLERANCE


@pytest.mark.long  # as are all eight-rank cells, in `make parity`
@pytest.mark.parametrize("cell", EIGHT, ids=["zero3", "sequence-parallel"])
def test_eight_ranks_equal_one(rank_pools: dict[int, RankPool], cell: Cell) -> None:
    result = compared(rank_pools[cell.ranks], cell, {})
    assert result.status == "run", result.reason
    assert result.fault() is None
