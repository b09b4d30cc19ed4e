"""What runs cost in floating-point operations, and which loss they have at equal compute."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import Any

import numpy as np

from model.encoders.protocol import SpanLoad
from parallel.costs import BACKWARD, Load, head_products, model_work
from tools.comparison.jobs import Jobs, read_whole
from tools.comparison.plan import PRETRAINING
from tools.comparison.results import finite, over_seeds, ranged
from tools.plan.tuned import Reach
from train.config import RunConfig
from train.config_files import load
from train.data.store.shards import ShardStore
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics


def step_operations(config: RunConfig, *, scored: float) -> float:
    """Operations of a step: matrix products, forward, and backward as far as gradients go.

    Args:
        config: of the run.
        scored: slots of a step that carry a loss, on average: the head computes these alone.
    """
    model = config.built_model
    slots = config.batch.sequences * config.data.sequence_tokens
    spans = {name: _spans(config, name, slots) for name in model.encoders}
    load = Load(
        sequences=config.batch.sequences, sequence_tokens=config.data.sequence_tokens, spans=spans
    )
    work = model_work(model, load)
    # A fixed decoder passes gradients on to the vectors of spans, and makes none of its weights.
    reach = Reach(model, config.tuning) if config.tuning.is_set else None
    is_fixed = reach is not None and not reach.touches("decoder.")
    backward = BACKWARD / 2 if is_fixed else BACKWARD
    layers = model.decoder.num_layers * (
        (1 + backward) * work.layer.products + (1 + BACKWARD) * work.layer.attention
    )
    head = head_products(model.decoder.width, model.decoder.vocabulary, scored=scored)
    return layers + (1 + backward) * head + work.first


def _spans(config: RunConfig, name: str, slots: int) -> SpanLoad:
    """Those of a step."""
    kind = config.spans[name]
    load = kind.load(config.data.sequence_tokens)
    if load is not None:
        count = config.batch.sequences
        return SpanLoad(
            vectors=load.vectors * count, spans=load.spans * count, longest=load.longest
        )
    tokens, spans, inside = _lengths(str(config.data.corpus))
    vectors = slots * inside / tokens
    length = inside / max(spans, 1)
    return SpanLoad(vectors=vectors, spans=vectors / max(length, 1), longest=length)


def _lengths(corpus: str) -> tuple[int, int, int]:
    """Tokens of a corpus's documents, their spans, and the tokens in spans."""
    tokens, spans, inside = ShardStore(f"{corpus}/train").totals[:, :3].sum(axis=0).tolist()
    return tokens, spans, inside


def costs(jobs: Jobs) -> dict[str, list[dict[str, Any]]]:
    """Compute and losses of each kind of run, by arm and seed, and how arms differ, for programs.

    `loss` is of the validation split at equal tokens, `loss_equal_compute` where the run, and the
    pretraining before it, had cost as much as the cheapest arm's cost in all; None where the curve
    has no point so early. Pretraining's losses are of the same tokens for all arms, see
    `tools.evaluate`; the others are of answers, which no arm's encoder reads.
    """
    plan, runs, compared = jobs.plan, list[dict[str, Any]](), list[dict[str, Any]]()
    before: dict[tuple[str, int], float] = {}
    for kind in jobs.steps:
        curves: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for arm in plan.arms:
            for seed in plan.seeds:
                curves[arm, seed] = _curve(jobs, arm, seed, kind, before.get((arm, seed), 0.0))
        if kind == PRETRAINING:
            before = {key: curve[-1][0] for key, curve in curves.items()}
        equal = min(curve[-1][0] for curve in curves.values())
        losses = {
            "equal_tokens": {key: curve[-1][1] for key, curve in curves.items()},
            "equal_compute": {key: at(curve, equal) for key, curve in curves.items()},
        }
        for (arm, seed), curve in curves.items():
            runs.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "kind": kind,
                    "steps": jobs.steps[kind],
                    "operations": curve[-1][0],
                    "loss": curve[-1][1],
                    "equal_operations": equal,
                    "loss_equal_compute": finite(losses["equal_compute"][arm, seed]),
                }
            )
        first, *others = plan.arms
        for arm in others:
            seen: dict[str, Any] = {"kind": kind, "arm": arm, "against": first}
            for name, by_run in losses.items():
                found = over_seeds([by_run[arm, each] - by_run[first, each] for each in plan.seeds])
                seen[name] = ranged(found) if isfinite(found.value) else None
            compared.append(seen)
    return {"runs": runs, "differences": compared}


def _curve(jobs: Jobs, arm: str, seed: int, kind: str, before: float) -> list[tuple[float, float]]:
    """Operations so far, and the loss that they have brought."""
    metrics = read_metrics(RunDirectory(jobs.run(arm, seed, kind)).metrics)
    scored = fmean(record.scored_tokens for record in metrics.train)
    config = load(RunConfig, jobs.config(arm, seed, kind))
    operations = step_operations(config, scored=scored)
    points = [(record.step, record.loss) for record in metrics.validation]
    shift = 0.0
    if kind == PRETRAINING:
        # Arms score other tokens on the way. At the end it is known what that makes.
        shift = read_whole(jobs.fixed(arm, seed))["fixed"]["loss"] - points[-1][1]
    return [(before + step * operations, loss + shift) for step, loss in points]


def at(curve: Sequence[tuple[float, float]], where: float) -> float:
    """The loss of a curve at some compute, between the points that it has; NaN outside of them."""
    places, losses = zip(*sorted(curve), strict=True)
    return float(np.interp(where, places, losses, left=np.nan, right=np.nan))
