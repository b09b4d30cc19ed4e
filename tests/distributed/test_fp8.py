"""`precision: fp8` in an engine: over ranks, microbatches, checkpoints and what lies between."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import fp8
from parallel.pipeline import forward_backward
from parallel.zero.config import why_unsupported
from parallel.zero.engine import ZeroEngine
from tests.distributed.checkpoint.runs import save_now
from tests.distributed.semicausal_runs import (
    Cell,
    History,
    engine_of,
    microbatches,
    on_ranks,
    run_steps,
)
from tools.ranks import RankPool
from train.checkpoint.restore import restore

CELL = Cell(precision="fp8", zero=1, microbatches=2)
WITH_HEAD = replace(CELL, precision="fp8_with_head")
INNER_LAYERS = 9


def _close(history: History, reference: History, *, loss: float, norm: float) -> None:
    for (one, its_norm), (other, other_norm) in zip(history, reference, strict=True):
        assert one == pytest.approx(other, rel=loss)
        assert its_norm == pytest.approx(other_norm, rel=norm)


@pytest.fixture(scope="module")
def alone(rank_pools: dict[int, RankPool]) -> History:
    """Of one rank with two microbatches."""
    return rank_pools[1].run(on_ranks, CELL)[0]


@pytest.fixture(scope="module")
def with_head(rank_pools: dict[int, RankPool]) -> History:
    """The same with the head in fp8."""
    return rank_pools[1].run(on_ranks, WITH_HEAD)[0]


@pytest.mark.parametrize("zero", [1, 2])
def test_two_ranks_are_one(rank_pools: dict[int, RankPool], alone: History, zero: Any) -> None:
    both = rank_pools[2].run(on_ranks, replace(CELL, zero=zero, data=2, microbatches=1))
    assert both[0] == both[1]
    _close(both[0], alone, loss=1e-3, norm=2e-2)


def test_two_ranks_with_a_head_in_fp8_are_one(
    rank_pools: dict[int, RankPool], with_head: History
) -> None:
    both = rank_pools[2].run(on_ranks, replace(WITH_HEAD, zero=2, data=2, microbatches=1))
    assert both[0] == both[1]
    _close(both[0], with_head, loss=1e-3, norm=2e-2)


def _amaxes(cell: Cell) -> torch.Tensor:
    engine = engine_of(cell)
    run_steps(engine, cell, range(1))
    assert engine.scales is not None
    engine.close()
    return engine.scales.last


def test_scales_are_those_of_all_ranks(rank_pools: dict[int, RankPool]) -> None:
    one, other = rank_pools[2].run(_amaxes, replace(CELL, data=2, microbatches=1))
    assert torch.equal(one, other)
    # DeepSpeed averages over ranks what one rank adds up.
    expected = rank_pools[1].run(_amaxes, CELL)[0] * torch.tensor([1, 2])
    torch.testing.assert_close(one, expected, rtol=1e-2, atol=0)


def test_it_is_near_bf16_and_not_the_same(rank_pools: dict[int, RankPool], alone: History) -> None:
    in_bf16 = rank_pools[1].run(on_ranks, replace(CELL, precision="bf16"))[0]
    _close(alone, in_bf16, loss=1e-2, norm=0.15)
    assert all(one[1] != other[1] for one, other in zip(alone, in_bf16, strict=True))


def test_a_head_in_fp8_is_near_and_not_the_same(alone: History, with_head: History) -> None:
    _close(with_head, alone, loss=1e-2, norm=0.15)
    for one, other in zip(with_head, alone, strict=True):
        assert one[0] != other[0]
        assert one[1] != other[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"recompute": "full"},
        {"recompute": "selective"},
        pytest.param({"compiled": "aot_eager"}, marks=pytest.mark.long),
    ],
)
def test_computed_again_or_compiled_it_is_the_same(
    rank_pools: dict[int, RankPool], alone: History, changes: dict[str, Any]
) -> None:
    assert rank_pools[1].run(on_ranks, replace(CELL, **changes))[0] == alone


def test_gpus_that_cannot_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert why_unsupported(1, "fp8_with_head") == (
        "NVIDIA A100 multiplies no fp8 (its compute capability is 8.0, 8.9 is needed): use bf16"
    )
    assert why_unsupported(1, "bf16") is None
    capability = (9, 0)
    assert why_unsupported(1, "fp8") is None


def _evaluate(engine: ZeroEngine, cell: Cell, step: int) -> list[float]:
    with engine.evaluating():
        batches = microbatches(cell, step, rank=engine.mesh.data_rank)
        return [engine(batch).total.item() for batch in batches]


def _stopped(directory: Path, cell: Cell) -> tuple[History, list[float]]:
    """Two steps, saved; three more from there, behind a trial that changes nothing."""
    engine = engine_of(cell)
    history = run_steps(engine, cell, range(2))
    evaluated = _evaluate(engine, cell, 5)
    path = save_now(directory, engine, step=2)
    engine.close()
    engine = engine_of(cell)
    restore(path, engine)
    evaluated += _evaluate(engine, cell, 5)
    batches = microbatches(cell, 7, rank=engine.mesh.data_rank)
    forward_backward(engine, batches, scale=math.inf)
    with pytest.raises(FloatingPointError):
        engine.step().read()
    evaluated += _evaluate(engine, cell, 5)
    history += run_steps(engine, cell, range(2, cell.steps))
    engine.close()
    return history, evaluated


def test_a_run_that_goes_on_is_the_same(
    rank_pools: dict[int, RankPool], alone: History, tmp_path: Path
) -> None:
    history, evaluated = rank_pools[1].run(_stopped, tmp_path, CELL)[0]
    assert history == alone
    num = len(evaluated) // 3
    assert evaluated[:num] == evaluated[num : 2 * num] == evaluated[2 * num :]


def test_a_run_with_a_head_in_fp8_goes_on_the_same(
    rank_pools: dict[int, RankPool], with_head: History, tmp_path: Path
) -> None:
    assert rank_pools[1].run(_stopped, tmp_path, WITH_HEAD)[0][0] == with_head


def _quantised_weights(cell: Cell) -> list[int]:
    """How many weights are quantised in each of three steps and evaluations."""
    counts = [0]
    plain = fp8.quantise

    def counted(values: torch.Tensor, *rest: Any) -> Any:
        counts[-1] += isinstance(values, torch.nn.Parameter)
        return plain(values, *rest)

    engine = engine_of(cell)
    fp8.quantise = counted
    try:
        for step in range(3):
            run_steps(engine, cell, [step])
            counts.append(0)
            _evaluate(engine, cell, step)
            _evaluate(engine, cell, step)
            counts.append(0)
    finally:
        fp8.quantise = plain
    decoder: Any = engine.module.decoder
    holders = [decoder.head] if cell.precision == "fp8_with_head" else []
    for block in list(decoder.blocks.values())[1:-1]:
        holders += [block.attention.qkv, block.feed_forward.up, block.feed_forward.down]
    for holder in holders:
        stored, scale = plain(holder.weight, fp8.amax_of(holder.weight), fp8.E4M3)
        held = holder.product.weight.float()
        assert torch.equal(held[: len(stored)], stored.float())
        assert not held[len(stored) :].any()
        assert holder.product.scale == scale
    engine.close()
    return counts


@pytest.mark.parametrize(
    ("precision", "recompute"), [("fp8", "none"), ("fp8", "full"), ("fp8_with_head", "none")]
)
def test_weights_are_quantised_once_a_step(
    rank_pools: dict[int, RankPool], precision: Any, recompute: Any
) -> None:
    cell = replace(CELL, microbatches=4, precision=precision, recompute=recompute)
    counts = rank_pools[1].run(_quantised_weights, cell)[0]
    weights = INNER_LAYERS + (precision == "fp8_with_head")
    # In the first forward after an update, which from the second step on is an evaluation's.
    assert counts == [weights, weights, 0, weights, 0, weights, 0]
