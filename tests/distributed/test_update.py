"""The update: the host does not wait for it, launches little, and nothing old is left in sums."""

import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from parallel.zero import gradients
from parallel.zero.accumulation import take_mean
from parallel.zero.config import Precision, ZeroConfig
from parallel.zero.state import local_slices, optimizer_steps
from tests.distributed import toy
from tests.distributed.semicausal_runs import Cell, microbatches
from tests.distributed.semicausal_runs import engine_of as semicausal_engine
from tests.distributed.toy import ADAMW, Toy, engine_of
from tools.ranks import RankPool
from train.step import accumulate, train_step, update

STAGES = (0, 1, 2, 3)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
LAYOUTS = [(stage, precision) for stage in STAGES for precision in PRECISIONS]

OPERATORS_BEFORE = 1480
"""Least that any stage launched for the update of this model when each tensor had its own."""


class Operators(TorchDispatchMode):
    """Counts what Python dispatches; what a foreach or fused operator does inside is one."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.count[function.__name__] += 1
        if function.__name__.startswith("index") and _has_mask(arguments):
            self.count["nonzero.default"] += 1  # how many places it has decides a shape
        return function(*arguments, **(options or {}))


def _has_mask(arguments: Any) -> bool:
    nested = [a for a in arguments if isinstance(a, list | tuple)]
    return any(isinstance(a, Tensor) and a.dtype == torch.bool for a in chain(*nested))


@contextmanager
def waits_counted() -> Generator[list[str]]:
    """Calls that would wait for a device if tensors were on one."""
    calls: list[str] = []
    # Read out by `item`, and what calls it: bool, int, float, index.
    names = ("tolist", "numpy", "cpu", "nonzero", "is_nonzero")
    originals = {name: getattr(Tensor, name) for name in names}

    def counted(name: str) -> Any:
        def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return originals[name](tensor, *arguments, **options)

        return call

    with Operators() as operators:
        for name in names:
            setattr(Tensor, name, counted(name))
        try:
            yield calls
        finally:
            for name in names:
                setattr(Tensor, name, originals[name])
    calls += ["item"] * operators.count["_local_scalar_dense.default"]
    calls += ["nonzero"] * operators.count["nonzero.default"]


def _step_of_real_model(
    stage: Any, precision: Precision
) -> tuple[list[str], list[str], Counter[str]]:
    """Waits of launching a step and of its result, and the operators of its update."""
    cell = Cell(zero=stage, precision=precision, microbatches=2)
    engine = semicausal_engine(cell)
    for step in range(2):
        train_step(engine, microbatches(cell, step, rank=0))
    batches = microbatches(cell, 2, rank=0)
    with waits_counted() as launching:
        summed = accumulate(engine, batches)
        launched = update(engine, summed)
    with waits_counted() as reading:
        assert math.isfinite(launched.result().averages.loss)
    summed = accumulate(engine, microbatches(cell, 3, rank=0))
    with Operators() as operators:
        launched = update(engine, summed)
    launched.result()
    engine.close()
    return launching, reading, operators.count


@pytest.mark.parametrize(("stage", "precision"), LAYOUTS)
def test_one_wait_a_step(rank_pools: dict[int, RankPool], stage: int, precision: Precision) -> None:
    launching, reading, operators = rank_pools[1].run(_step_of_real_model, stage, precision)[0]
    # The only numbers that the host has to know before are its own.
    assert launching == []
    assert reading == ["tolist"]
    assert operators.total() <= OPERATORS_BEFORE / 10, operators.most_common(5)


def test_the_count_sees_waits() -> None:
    with waits_counted() as calls:
        ones = torch.ones(2)
        bool(ones[0])
        float(ones[1])
        ones.sum().item()
        ones.tolist()
        ones[ones > 0]
    assert sorted(calls) == ["item", "item", "item", "nonzero", "tolist"]


class Skipping(Toy):
    """Leaves its matrix out in some steps."""

    skips = False

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        if not self.skips:
            return super().forward(batch)
        tokens, labels = batch
        return self.head(self.norm(self.embedding(tokens)), labels)


def _with_skips(cases: list[dict[str, Any]]) -> list[list[tuple[float, float]]]:
    curves: list[list[tuple[float, float]]] = []
    for case in cases:
        model = Skipping()
        engine = engine_of(model, **case)
        curve: list[tuple[float, float]] = []
        for step, skips in enumerate([False, True, False, True, True, False]):
            model.skips = skips
            curve.append(toy.train_step(engine, step, accumulation=2))
        engine.close()
        curves.append(curve)
    return curves


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_parameter_without_a_gradient_has_none_of_an_older_step(
    rank_pools: dict[int, RankPool], ranks: int
) -> None:
    cases = [
        {"stage": 1, "precision": "bf16"},
        {"stage": 1, "precision": "bf16", "immediate_gradients": False},
        {"stage": 2, "precision": "bf16"},
        *({"stage": stage, "precision": "fp32"} for stage in STAGES),
    ]
    at_once, kept, sharded, *in_fp32 = rank_pools[ranks].run(_with_skips, cases)[0]
    assert at_once == kept
    assert at_once == [pytest.approx(expected, rel=2e-3) for expected in sharded]
    for curve in in_fp32:
        assert curve == [pytest.approx(expected, rel=1e-5) for expected in in_fp32[0]]


def _adamw_by_hand(clip_norm: float | None) -> tuple[float, float]:
    """Largest distance of masters from AdamW in fp64 on the same gradients; and the norm."""
    engine = engine_of(Toy(), stage=1, adamw=replace(ADAMW, clip_norm=clip_norm))
    engine.set_learning_rate(0.01)
    before = {part.name: part.tensor.double().clone() for part in _values(engine)}
    tokens, labels = toy.global_batch(0)
    plain = Toy()
    plain((tokens, labels)).div(1000).backward()
    with engine.accumulating(1):
        engine((tokens, labels)).div(1000).backward()
    norm = engine.step().read().norm
    scale = 1.0 if clip_norm is None else max(1.0, (norm + 1e-6) / clip_norm)
    furthest = 0.0
    for part in _values(engine):
        gradient = dict(plain.named_parameters())[part.name].grad
        assert gradient is not None
        gradient = gradient.double().flatten() / scale
        # The first step of AdamW: the moments' corrections cancel their decay.
        direction = gradient / (gradient.abs() + ADAMW.epsilon)
        value = before[part.name]
        decay = ADAMW.weight_decay if part.name == "mix.weight" else 0.0
        expected = value * (1 - 0.01 * decay) - 0.01 * direction
        furthest = max(furthest, float((part.tensor.double() - expected).abs().max()))
    engine.close()
    return furthest, norm


def _values(engine: Any) -> list[Any]:
    return [part for part in local_slices(engine) if part.kind == "value"]


def test_the_update_is_adamw_on_the_clipped_gradient(rank_pools: dict[int, RankPool]) -> None:
    for clip_norm in (None, 1e-4, 1e3):
        furthest, norm = rank_pools[1].run(_adamw_by_hand, clip_norm)[0]
        assert 1e-3 < norm < 1e3  # clipped by the second alone
        assert furthest < 2.4e-7  # the last place of weights between 2 and 4


def _refused_updates(stage: int, precision: Precision) -> list[str]:
    """What refused updates say: sums that are not finite, and copies that are said to differ."""
    engine = engine_of(Toy(), stage=stage, precision=precision)
    toy.train_step(engine, 0)
    said: list[str] = []
    for sums, differs in ((math.nan, False), (math.inf, False), (1.0, True)):
        before = [part.tensor.clone() for part in local_slices(engine)]
        with engine.accumulating(1):
            engine(toy.global_batch(1)).div(1000).backward()
        original = gradients.differ
        if differs:
            gradients.differ = lambda spoken, mean: spoken >= 0
        try:
            engine.step(torch.tensor([sums])).read()
        except (FloatingPointError, RuntimeError) as error:
            said.append(str(error)[:28])
        finally:
            gradients.differ = original
        after = [part.tensor for part in local_slices(engine)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert optimizer_steps(engine) == 1
    engine.close()
    return said


@pytest.mark.parametrize(("stage", "precision"), LAYOUTS)
def test_what_is_refused_changes_nothing(
    rank_pools: dict[int, RankPool], stage: int, precision: Precision
) -> None:
    for said in rank_pools[2].run(_refused_updates, stage, precision):
        assert said == ["the loss is not finite"] * 2 + ["ranks that should hold the s"]


def _means(travels_in: Precision) -> tuple[Tensor, Tensor]:
    """This rank's part of a mean over ranks, and the same in fp64."""
    mesh = build_mesh(LayoutConfig(), World.here())
    parts = [torch.randn(4096, generator=torch.Generator().manual_seed(rank)) for rank in range(2)]
    flat = parts[mesh.data_rank].clone()
    found = flat.chunk(2)[mesh.data_rank]
    take_mean(found, flat, mesh, travels_in=travels_in)
    exact = torch.stack([part.double() for part in parts]).mean(dim=0)
    return found, exact.chunk(2)[mesh.data_rank]


def test_a_rank_gets_the_mean_of_its_part(rank_pools: dict[int, RankPool]) -> None:
    for found, exact in rank_pools[2].run(_means, "fp32"):
        assert torch.equal(found, exact.float())
    for found, exact in rank_pools[2].run(_means, "bf16"):
        off = (found - exact).abs()
        assert found.dtype == torch.float32
        # Each of the two is rounded to eight bits, half a unit at most; no sum is rounded again.
        assert 0 < off.max() < 4 * 2**-9
        assert (found.bfloat16().float() != found).float().mean() > 0.3


def _curves(cases: list[dict[str, Any]]) -> list[list[tuple[float, float]]]:
    curves: list[list[tuple[float, float]]] = []
    for case in cases:
        engine = engine_of(Toy(), **case)
        curves.append([toy.train_step(engine, step, accumulation=2) for step in range(4)])
        engine.close()
    return curves


@pytest.mark.parametrize("precision", PRECISIONS)
def test_reduction_beside_the_backward_changes_nothing(
    rank_pools: dict[int, RankPool], precision: Precision
) -> None:
    case = {"stage": 2, "precision": precision}
    after, beside = rank_pools[2].run(_curves, [case, case | {"overlap": True}])[0]
    assert beside == after


def test_bf16_between_ranks_is_close(rank_pools: dict[int, RankPool]) -> None:
    case = {"stage": 1, "precision": "bf16"}
    whole, rounded = rank_pools[2].run(_curves, [case, case | {"reduce_precision": "bf16"}])[0]
    assert rounded != whole
    assert rounded == [pytest.approx(expected, rel=4e-3) for expected in whole]


@pytest.mark.parametrize(
    ("zero", "precision", "told"),
    [
        ({"stage": 1, "overlap": True}, "bf16", "zero.overlap: is a choice at"),
        ({"stage": 2, "reduce_precision": "bf16"}, "bf16", "zero.reduce_precision: bf16 is for"),
        ({"stage": 1, "reduce_precision": "bf16"}, "fp32", "zero.reduce_precision: bf16 is for"),
    ],
)
def test_what_cannot_be_had_is_told(zero: dict[str, Any], precision: str, told: str) -> None:
    (fault,) = ZeroConfig(**zero).faults(precision, states="fp32")
    assert fault.startswith(told)
    assert ZeroConfig(stage=2, overlap=True).faults(precision, states="fp32") == []
    assert ZeroConfig(reduce_precision="bf16").faults("bf16", states="fp32") == []
    assert len(ZeroConfig(reduce_precision="bf16").faults("bf16", states="bf16")) == 1
