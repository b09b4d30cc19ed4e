"""Every ZeRO stage computes what one plain process computes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.engine import parameter_groups
from parallel.zero.config import Precision, ZeroConfig, why_unsupported
from parallel.zero.state import local_slices, optimizer_steps
from tests.distributed.toy import (
    ADAMW,
    LEARNING_RATE,
    Toy,
    engine_of,
    evaluate,
    global_batch,
    train_step,
)
from tools.ranks import RankPool

NUM_STEPS = 5
STAGES = (0, 1, 2, 3)
Curve = list[tuple[float, float]]
Cases = list[dict[str, Any]]


def _oracle(*, frozen: bool, clip_norm: float | None) -> tuple[Curve, list[float]]:
    """Plain torch: whole batches, fp64 norms; losses and norms, and a loss at the end of a step."""
    model = Toy(frozen=frozen)
    groups = parameter_groups(model, weight_decay=ADAMW.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=ADAMW.betas, eps=ADAMW.epsilon)
    curve: Curve = []
    evaluations: list[float] = []
    for step in range(NUM_STEPS):
        tokens, labels = global_batch(step)
        loss = model((tokens, labels)) / (labels != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in gradients))
        if clip_norm is not None and norm > clip_norm:
            for gradient in gradients:
                gradient.copy_(gradient.double() * (clip_norm / norm))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE / (1 + step)
        optimizer.step()
        curve.append((loss.item(), norm))
        evaluations.append(model(global_batch(999)).item())
    return curve, evaluations


def _train_cases(cases: Cases) -> list[tuple[Curve, list[float]]]:
    results: list[tuple[Curve, list[float]]] = []
    for case in cases:
        accumulation = case.pop("accumulation", 1)
        engine = engine_of(Toy(frozen=case.pop("frozen", False)), **case)
        curve: Curve = []
        evaluations: list[float] = []
        for step in range(NUM_STEPS):
            curve.append(train_step(engine, step, accumulation=accumulation))
            evaluations.append(evaluate(engine))
        engine.close()
        results.append((curve, evaluations))
    return results


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("frozen", [False, True])
def test_fp32_equals_one_plain_process(
    rank_pools: dict[int, RankPool], num_ranks: int, frozen: bool
) -> None:
    cases: Cases = [
        {"stage": stage, "accumulation": accumulation, "frozen": frozen}
        for stage in STAGES
        for accumulation in (1, 2)
    ]
    curve, evaluations = _oracle(frozen=frozen, clip_norm=0.5)
    assert min(norm for _, norm in curve) > 0.5, "every step must clip"
    for rank_results in rank_pools[num_ranks].run(_train_cases, cases):
        for case, (its_curve, its_evaluations) in zip(cases, rank_results, strict=True):
            for expected, got in zip(curve, its_curve, strict=True):
                assert got == pytest.approx(expected, rel=1e-5), case
            assert its_evaluations == pytest.approx(evaluations, rel=1e-5), case


def test_without_clipping_and_with_four_microbatches(rank_pools: dict[int, RankPool]) -> None:
    cases: Cases = [
        {"stage": stage, "accumulation": 4, "adamw": replace(ADAMW, clip_norm=clip_norm)}
        for stage in STAGES
        for clip_norm in (None, 1e6)
    ]
    curve, _ = _oracle(frozen=False, clip_norm=None)
    for its_curve, _ in rank_pools[2].run(_train_cases, cases)[0]:
        assert its_curve == [pytest.approx(expected, rel=1e-5) for expected in curve]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_bf16_stages_agree(rank_pools: dict[int, RankPool], num_ranks: int) -> None:
    cases: Cases = [
        {"stage": stage, "accumulation": accumulation, "precision": "bf16", "frozen": True}
        for accumulation in (1, 2)
        for stage in STAGES
    ]
    curve, _ = _oracle(frozen=True, clip_norm=0.5)
    results = rank_pools[num_ranks].run(_train_cases, cases)
    for its_curve, _ in results[0]:
        # A bf16 number has eight bits.
        assert its_curve == [pytest.approx(expected, rel=0.02) for expected in curve]
    for first in (0, len(STAGES)):
        reference = results[0][first][0]
        for its_curve, _ in results[0][first : first + len(STAGES)]:
            # Same microbatches, so the same gradients up to the order of fp32 sums.
            assert its_curve == [pytest.approx(expected, rel=2e-3) for expected in reference]


def _snapshot(engine: Any) -> list[torch.Tensor]:
    return [part.tensor.clone() for part in local_slices(engine)]


def _survive_bad_gradients(stage: int, precision: Precision) -> list[bool]:
    engine = engine_of(Toy(), stage=stage, precision=precision)
    clean = engine_of(Toy(), stage=stage, precision=precision)
    untouched: list[bool] = []
    for step, bad in enumerate([math.inf, math.nan]):
        train_step(engine, step, accumulation=2)
        train_step(clean, step, accumulation=2)
        before, loss_before = _snapshot(engine), evaluate(engine)
        # One rank alone has the bad value.
        is_last = dist.get_rank() == dist.get_world_size() - 1
        with pytest.raises(FloatingPointError, match="not finite"):
            train_step(engine, 10, accumulation=2, scale=bad if is_last else 1.0)
        untouched += [
            all(torch.equal(a, b) for a, b in zip(before, _snapshot(engine), strict=True)),
            evaluate(engine) == loss_before,
            optimizer_steps(engine) == step + 1,
        ]
    # Nothing of the dropped gradients is left over for the next step either.
    untouched.append(train_step(engine, 2, accumulation=2) == train_step(clean, 2, accumulation=2))
    untouched.append(evaluate(engine) == evaluate(clean))
    engine.close()
    clean.close()
    return untouched


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_non_finite_gradient_changes_nothing(
    rank_pools: dict[int, RankPool], stage: int, precision: Precision
) -> None:
    for untouched in rank_pools[2].run(_survive_bad_gradients, stage, precision):
        assert untouched == [True] * 8


def test_every_stage_is_supported_in_both_precisions() -> None:
    if not torch.cuda.is_available():
        precisions: list[Precision] = ["fp32", "bf16"]
        assert all(
            why_unsupported(s, precision) is None for s in STAGES for precision in precisions
        )
    assert ZeroConfig().stage in STAGES
