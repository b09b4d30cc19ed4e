"""Two pipeline stages against the ideal for their bubble, and the uneven split against halves."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from model.batch import Batch
from model.layers import initialize
from model.semicausal import ModelConfig
from parallel.costs import model_work, usual_load
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh, build_mesh
from parallel.pipeline import forward_backward
from parallel.spread import build_part, split_of
from parallel.zero import AdamWOptions, ZeroConfig
from parallel.zero import initialize as initialize_zero
from tools.bench.rounds import Contestant, Findings, Spread, Step, alternate, ratio, record, spread
from tools.bench.semicausal import RATIO
from tools.bench.shapes import Plan, Shape
from tools.bench.training import (
    BETAS,
    CLIP_NORM,
    EPSILON,
    LEARNING_RATE,
    SEED,
    WEIGHT_DECAY,
    batches,
    build,
    longest_rows,
    num_parameters,
)
from train.optim import parameter_groups

NUM_STAGES = 2
NUM_MICROBATCHES = 8


def two_stages(plan: Plan) -> Findings:
    """Whole model, two balanced stages, two halves, in turn; every rank must call it.

    The whole model is computed by both ranks at once, each on its own and without exchange, so that
    both cores are as busy as under the pipeline.
    """
    shape = plan.stages
    config = shape.semi_causal(max_tokens=longest_rows(shape))
    given = batches(shape, ratio=RATIO, count=NUM_MICROBATCHES)
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), device=torch.device("cpu"))
    half = config.decoder.num_layers // NUM_STAGES
    balanced = LayoutConfig(pipeline=NUM_STAGES)
    uniform = LayoutConfig(pipeline=NUM_STAGES, split=[half] * NUM_STAGES)
    mesh = build_mesh(balanced, world)
    whole = build(config)
    parameters = num_parameters(whole)
    steps: dict[str, Step] = {
        "whole": _alone(whole, given),
        "two_stages": _piped(config, balanced, mesh, shape, given),
        "two_halves": _piped(config, uniform, mesh, shape, given),
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
            "split": list(_split(config, balanced, shape)),
        },
        contestants=record(contestants, seconds),
        ratios={
            "two_stages_vs_ideal": ratio(seconds["two_stages"], ideal),
            "two_halves_vs_two_stages": ratio(seconds["two_halves"], seconds["two_stages"]),
            "two_halves_vs_two_stages_predicted": _predicted(config, uniform, balanced, shape),
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


def _piped(
    config: ModelConfig, layout: LayoutConfig, mesh: Mesh, shape: Shape, given: Sequence[Batch]
) -> Step:
    model = build_part(config, layout, mesh, split=_split(config, layout, shape))
    initialize(model, seed=SEED)
    engine = initialize_zero(
        model,
        param_groups=parameter_groups(model, WEIGHT_DECAY),
        optim=AdamWOptions(LEARNING_RATE, BETAS, EPSILON),
        precision="fp32",
        config=ZeroConfig(stage=1),
        clip_norm=CLIP_NORM,
        mesh=mesh,
    )
    count = sum(batch.num_scored for batch in given)

    def step() -> None:
        forward_backward(engine, given, scale=1 / count)
        engine.step()

    return step


def _split(config: ModelConfig, layout: LayoutConfig, shape: Shape) -> tuple[int, ...]:
    return split_of(config, layout, sequence_tokens=shape.sequence_tokens, span_share=RATIO)


def _predicted(
    config: ModelConfig, over: LayoutConfig, under: LayoutConfig, shape: Shape
) -> Spread:
    """Ratio of step times by operations alone: each microbatch waits for the slowest stage."""
    load = usual_load(
        config,
        sequences=shape.sequences,
        sequence_tokens=shape.sequence_tokens,
        span_share=RATIO,
    )
    work = model_work(config, load)

    def operations(layout: LayoutConfig) -> float:
        first, last = _split(config, layout, shape)
        stages = (
            first * work.layer.training + work.first,
            last * work.layer.training + work.head.training,
        )
        return (NUM_MICROBATCHES - 1) * max(stages) + sum(stages)

    return spread([operations(over) / operations(under)])
