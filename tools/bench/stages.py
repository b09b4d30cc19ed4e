"""Two pipeline stages against the ideal for their bubble, and the uneven split against halves."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from model.batch import Batch
from model.semicausal import ModelConfig
from parallel.agreement import gathered
from parallel.mesh import LayoutConfig, Mesh
from parallel.zero.config import ZeroConfig
from tools.bench.rounds import Contestant, Findings, Spread, Step, alternate, ratio, record, spread
from tools.bench.semicausal import RATIO
from tools.bench.shapes import Plan
from tools.bench.training import (
    BETAS,
    CLIP_NORM,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    batches,
    build,
    longest_rows,
    num_parameters,
)
from tools.plan.machines import Machine, RatesAt, nominal
from tools.plan.measure import Trial, as_planned, engine_of, mesh_of, train_step
from tools.plan.rates import HEAD_WIDTH, Sizes, StageRates, compute_rates, group_links
from tools.plan.search import one_plan, with_best_split
from train.optim import parameter_groups

NUM_STAGES = 2
NUM_MICROBATCHES = 8


def two_stages(plan: Plan) -> Findings:
    """Whole model, two stages as planned, two halves, in turn; every rank must call it.

    The whole model is computed by both ranks at once, each on its own and without exchange, so that
    both cores are as busy as under the pipeline.
    """
    shape = plan.stages
    config = shape.semi_causal(max_tokens=longest_rows(shape))
    given = batches(shape, ratio=RATIO, count=NUM_MICROBATCHES)
    machine, balanced = _planned(plan, config)
    half = config.decoder.num_layers // NUM_STAGES
    halves = replace(balanced, split=(half,) * NUM_STAGES)
    mesh = mesh_of(balanced)
    whole = build(config)
    parameters = num_parameters(whole)
    steps: dict[str, Step] = {
        "whole": _alone(whole, given),
        "two_stages": _piped(balanced, mesh, given),
        "two_halves": _piped(halves, mesh, given),
    }
    contestants = [
        Contestant(
            name=name,
            step=step,
            tokens=shape.tokens * NUM_MICROBATCHES,
            parameters=parameters,
            precision="fp32",
        )
        for name, step in steps.items()
    ]
    seconds = alternate(contestants, plan.heavy)
    bubble = (NUM_MICROBATCHES + NUM_STAGES - 1) / NUM_MICROBATCHES
    ideal = [taken / NUM_STAGES * bubble for taken in seconds["whole"]]
    return Findings(
        case="stages",
        settings=shape.settings(encoder=True)
        | {
            "ranks": NUM_STAGES,
            "threads_per_rank": 1,
            "microbatches": NUM_MICROBATCHES,
            "split": list(balanced.split),
        },
        contestants=record(contestants, seconds),
        ratios={
            "two_stages_vs_ideal": ratio(seconds["two_stages"], ideal),
            "two_halves_vs_two_stages": ratio(seconds["two_halves"], seconds["two_stages"]),
            "two_halves_vs_two_stages_predicted": _predicted(halves, balanced, machine),
        },
    )


def _alone(model: Any, given: Sequence[Batch]) -> Step:
    optimizer = torch.optim.AdamW(
        parameter_groups(model, WEIGHT_DECAY),
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        fused=True,
    )
    count = sum(batch.num_scored for batch in given)

    def step() -> None:
        for batch in given:
            (model(batch).total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        dist.barrier()  # as the pipeline's two ranks end together

    return step


def _planned(plan: Plan, config: ModelConfig) -> tuple[Machine, Trial]:
    """What ranks of this machine compute in a second, and the stages that the planner makes."""
    shape = plan.stages
    trial = Trial(
        model=config,
        layout=LayoutConfig(pipeline=NUM_STAGES),
        split=(1,) * NUM_STAGES,
        zero=ZeroConfig(stage=0),  # one copy of the model: nothing to share out
        precision="fp32",
        ranks=NUM_STAGES,
        micro_sequences=shape.sequences,
        num_microbatches=NUM_MICROBATCHES,
        sequence_tokens=shape.sequence_tokens,
        span_share=RATIO,
    )
    # Every rank has its own measurements, and all must choose the same.
    machine = gathered(_calibrated(plan))[0]
    best, _ = with_best_split(*as_planned(trial), machine)
    return machine, replace(trial, split=best.split)


def _calibrated(plan: Plan) -> Machine:
    """As `tools.plan calibrate` would have it, at this shape's sizes alone."""
    shape = plan.stages
    width, encoder_width = shape.width, shape.encoder_width
    block_width = max(width, HEAD_WIDTH)
    sizes = Sizes(
        rows=shape.tokens,
        products=(
            (encoder_width, encoder_width),
            (width, width),
            (width, 4 * width),
            (width, shape.vocabulary),
        ),
        widths=(block_width, 2 * block_width),
        head=(width, shape.vocabulary),
        seconds=plan.rate_seconds,
    )
    # ZeRO's own work is left out: it is the same whatever the split.
    free = [StageRates(0.0, 0.0, 0.0, 0.0)] * 4
    rates = compute_rates("fp32", sizes).rates(microbatch_seconds=0.0, by_stage=free)
    return nominal("cpu", cores=NUM_STAGES).model_copy(
        update={
            "rates": [RatesAt(precision="fp32", busy_ranks=NUM_STAGES, rates=rates)],
            "within_node": group_links(),
        }
    )


def _piped(trial: Trial, mesh: Mesh, given: list[Batch]) -> Step:
    engine = engine_of(trial, mesh)
    return lambda: train_step(engine, given)


def _predicted(over: Trial, under: Trial, machine: Machine) -> Spread:
    """Ratio of step times by the planner."""
    plans = (one_plan(*as_planned(trial), machine) for trial in (over, under))
    slow, quick = (plan.seconds.total for plan in plans)
    return spread([slow / quick])
