"""Two pipeline stages against the ideal for their bubble, and the uneven split against halves."""

from collections.abc import Sequence
from dataclasses import replace

import torch.distributed as dist

from model.batch import Batch
from model.semicausal import SemiCausal
from parallel.agreement import gathered
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from tools.bench.rounds import Findings, Step, contestants, ratio, spread
from tools.bench.shapes import RATIO, Plan, Shape
from tools.bench.training import build, engine_step, num_parameters, plain_update
from tools.plan.machines import Machine, RatesAt, nominal
from tools.plan.measure import engine_of, measured_task
from tools.plan.rates import HEAD_WIDTH, Sizes, compute_rates, group_links
from tools.plan.search import one_plan, with_best_split
from tools.plan.task import Candidate

NUM_STAGES = 2
NUM_MICROBATCHES = 8


def two_stages(plan: Plan) -> Findings:
    """Whole model, two stages as planned, two halves, in turn; every rank must call it.

    The whole model is computed by both ranks at once, each on its own and without exchange, so that
    both cores are as busy as under the pipeline.
    """
    shape = plan.stages
    config = shape.semi_causal()
    given = shape.batches(ratio=RATIO, count=NUM_MICROBATCHES)
    task = measured_task(
        config,
        sequences=shape.sequences * NUM_MICROBATCHES,
        sequence_tokens=shape.sequence_tokens,
        span_share=RATIO,
    )
    draft = Candidate(
        layout=LayoutConfig(pipeline=NUM_STAGES),
        data=1,
        stage=0,  # one copy of the model: nothing to share out
        micro_sequences=shape.sequences,
        num_microbatches=NUM_MICROBATCHES,
    )
    # Every rank has its own measurements, and all must choose the same.
    machine = gathered(calibrated(shape, seconds=plan.rate_seconds))[0]
    balanced = with_best_split(task, draft, machine)
    half = config.decoder.num_layers // NUM_STAGES
    in_halves = balanced.layout.model_copy(update={"split": [half] * NUM_STAGES})
    stages = {"two_stages": balanced, "two_halves": replace(balanced, layout=in_halves)}
    mesh = build_mesh(balanced.layout, World.here())
    whole = build(config)
    steps = {"whole": _alone(whole, given)} | {
        name: engine_step(engine_of(task, split, mesh), given, at_once=NUM_MICROBATCHES)
        for name, split in stages.items()
    }
    found = Findings(
        settings=shape.settings
        | {
            "ranks": NUM_STAGES,
            "threads_per_rank": 1,
            "microbatches": NUM_MICROBATCHES,
            "split": list(balanced.split),
        }
    )
    halves = {"two_halves_vs_two_stages": ("two_halves", "two_stages")}
    trained = contestants(
        steps,
        tokens=shape.tokens * NUM_MICROBATCHES,
        parameters=num_parameters(whole),
        precision="fp32",
    )
    seconds = found.compare(trained, plan.heavy, halves)
    bubble = (NUM_MICROBATCHES + NUM_STAGES - 1) / NUM_MICROBATCHES
    ideal = [taken / NUM_STAGES * bubble for taken in seconds["whole"]]
    quick, slow = (one_plan(task, split, machine).seconds.total for split in stages.values())
    found.ratios |= {
        "two_stages_vs_ideal": ratio(seconds["two_stages"], ideal),
        "two_halves_vs_two_stages_predicted": spread([slow / quick]),
    }
    return found


def _alone(model: SemiCausal, given: Sequence[Batch]) -> Step:
    update = plain_update(model)
    count = sum(batch.num_scored for batch in given)

    def step() -> None:
        for batch in given:
            (model(batch).total / count).backward()
        update()
        dist.barrier()  # as the pipeline's two ranks end together

    return step


def calibrated(shape: Shape, *, seconds: float) -> Machine:
    """As `tools.plan calibrate` would have it, at this shape's sizes alone.

    Args:
        shape: whose sizes are timed.
        seconds: how long each rate is measured.
    """
    width, encoder_width, vocabulary = shape.width, shape.encoder_width, shape.vocabulary
    block_width = max(width, HEAD_WIDTH)
    sizes = Sizes(
        rows=shape.tokens,
        products=(
            *((encoder_width, encoder_width), (width, width)),
            *((width, 4 * width), (width, vocabulary)),
        ),
        widths=(block_width, 2 * block_width),
        head=(width, vocabulary),
        seconds=seconds,
    )
    # Without ZeRO's own work, which is the same whatever the split.
    rates = compute_rates("fp32", sizes)
    return nominal("cpu", cores=NUM_STAGES).model_copy(
        update={
            "rates": [RatesAt(precision="fp32", busy_ranks=NUM_STAGES, rates=rates)],
            "within_node": group_links(),
        }
    )
