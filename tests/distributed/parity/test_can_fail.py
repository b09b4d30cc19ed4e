"""The comparison with one process notices when what makes layouts equal is taken away."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.adapters.layer import Adapted
from parallel.later import Later
from parallel.zero import gradients
from parallel.zero.engine import Update, ZeroEngine
from parallel.zero.gradients import Gradient, Weights
from tests.distributed.parity.results import TOLERANCE, differences
from tests.distributed.semicausal_runs import Cell, History, engine_of, on_ranks, oracle, run_steps
from tools.ranks import RankPool, RanksFailed

SEQUENCE_PARALLEL = Cell(tensor=2, sequence_parallel=True)
ADAPTERS = Cell(tensor=2, sequence_parallel=True, tuned="all")
TIED_STAGES = Cell(pipeline=2)
DISAGREEMENT = "ranks that should hold the same gradient do not"


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Generator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _run(cell: Cell) -> History | str:
    """The cell's history, or the message with which the engine refused to step."""
    engine = engine_of(cell)
    outcome: History | str
    try:
        outcome = run_steps(engine, cell, range(cell.steps))
    except RuntimeError as error:
        if DISAGREEMENT not in str(error):
            raise  # perhaps on this rank alone: do not wait for the others
        outcome = str(error)
    engine.close()
    return outcome


def _without_sums(cell: Cell) -> History | str:
    with _replaced(gradients, "sum_shared", _nothing):
        return _run(cell)


def _copies_counted_twice(cell: Cell) -> History | str:
    collect = gradients.collect

    def counting_all(engine: ZeroEngine) -> list[Gradient]:
        return [replace(g, is_copy=False, num_copies=1) for g in collect(engine)]

    with _replaced(gradients, "collect", counting_all):
        return _run(cell)


def _begin_without_flag(engine: Any, gradient: Tensor) -> None:
    engine._backwards_left -= 1
    engine._deepspeed.set_gradient_accumulation_boundary(engine._backwards_left == 0)


def _begin_without_boundary(engine: Any, gradient: Tensor) -> None:
    engine._backwards_left -= 1
    engine.zero_optimizer.clear_backward_seen_flag()


def _with_other_beginning(cell: Cell, begin: Callable[..., None]) -> History | str:
    with _replaced(ZeroEngine, "_begin_backward", begin):
        return _run(cell)


def _nothing(*_: object) -> None:
    pass


def _is_noticed(outcome: History | str, cell: Cell) -> bool:
    if isinstance(outcome, str):
        return DISAGREEMENT in outcome
    return max(differences(outcome, oracle(cell)[0])) > TOLERANCE


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "cell", [SEQUENCE_PARALLEL, TIED_STAGES, ADAPTERS], ids=lambda cell: cell.layout + cell.tuned
)
def test_gradients_that_are_not_summed_are_noticed(
    rank_pools: dict[int, RankPool], cell: Cell, zero: Any
) -> None:
    cell = replace(cell, zero=zero)
    for outcome in rank_pools[2].run(_without_sums, cell):
        assert _is_noticed(outcome, cell), outcome


@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("cell", [SEQUENCE_PARALLEL, TIED_STAGES], ids=lambda cell: cell.layout)
def test_copies_counted_twice_are_noticed(
    rank_pools: dict[int, RankPool], cell: Cell, zero: Any
) -> None:
    cell = replace(cell, zero=zero)
    for outcome in rank_pools[2].run(_copies_counted_twice, cell):
        assert isinstance(outcome, list)
        _, norm_difference = differences(outcome, oracle(cell)[0])
        assert norm_difference > TOLERANCE


@pytest.mark.parametrize("zero", [1, 2])
def test_a_boundary_that_is_not_announced_is_noticed(
    rank_pools: dict[int, RankPool], zero: Any
) -> None:
    cell = Cell(pipeline=2, zero=zero, microbatches=4)
    for outcome in rank_pools[2].run(_with_other_beginning, cell, _begin_without_boundary):
        assert _is_noticed(outcome, cell), outcome


def test_a_backward_that_is_not_announced_is_refused(rank_pools: dict[int, RankPool]) -> None:
    """DeepSpeed takes it for one with the last, and fails; it must not be a hang either."""
    cell = Cell(pipeline=2, zero=3, microbatches=4)
    for history in rank_pools[2].run(on_ranks, cell):
        assert not _is_noticed(history, cell)
    with pytest.raises(RanksFailed, match=r"^rank . failed:"):
        rank_pools[2].run(_with_other_beginning, cell, _begin_without_flag, timeout_seconds=60)


def _without_joins(cell: Cell) -> History | str:
    """A's rows are neither summed over ranks nor are their gradients."""
    with _replaced(Adapted, "join", staticmethod(_as_it_is)):
        return _run(cell)


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


@pytest.mark.parametrize("targets", ["decoder", "encoder"])
def test_adapters_whose_ranks_do_not_join_are_noticed(
    rank_pools: dict[int, RankPool], targets: str
) -> None:
    cell = Cell(tensor=2, tuned=targets)
    for outcome in rank_pools[2].run(_without_joins, cell):
        assert _is_noticed(outcome, cell), outcome


def _norms(cases: list[tuple[float, float]]) -> list[float | str]:
    """Norms of one replicated gradient, of which rank r holds `case[r]`."""
    rank = dist.get_rank()
    weights = Weights([], torch.device("cpu"))
    answers: list[float | str] = []
    for case in cases:
        gradient = Gradient(
            parameter=nn.Parameter(torch.zeros(1)),
            value=torch.tensor([case[rank]]),
            part="decoder.norm",
            is_tied=False,
            is_copy=rank > 0,
            num_copies=2,
        )
        squares = gradients.squares([gradient], weights.of([gradient]))
        dist.all_reduce(squares)
        try:
            answers.append(Update(told=Later(squares), parts=()).read().norm)
        except (FloatingPointError, RuntimeError) as error:
            answers.append(str(error))
    return answers


def test_copies_that_differ_are_refused(rank_pools: dict[int, RankPool]) -> None:
    cases = [(3.0, 3.0), (3.0, 3.1), (3.1, 3.0), (3.0, 0.0)]
    for equal, *different in rank_pools[2].run(_norms, cases):
        assert equal == 3.0
        assert all(DISAGREEMENT in str(message) for message in different), different


def test_a_norm_that_is_not_finite_is_no_disagreement(rank_pools: dict[int, RankPool]) -> None:
    """A bad value on one rank alone is reported as such: the step is dropped, not the run."""
    for answers in rank_pools[2].run(_norms, [(math.inf, 3.0), (3.0, math.nan)]):
        assert answers == ["the gradient is not finite"] * 2
