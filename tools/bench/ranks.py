"""ZeRO-3 against torch's DDP: two ranks with one thread each, the same model, batch and AdamW."""

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tools.bench.rounds import Contestant, Findings, Step, alternate, ratio, record
from tools.bench.semicausal import RATIO
from tools.bench.shapes import Plan
from tools.bench.training import (
    batches,
    build,
    engine_of,
    engine_step,
    longest_rows,
    num_parameters,
    our_losses,
    plain_step,
)

NUM_RANKS = 2


def zero3_vs_ddp(plan: Plan) -> Findings:
    """Both in the same processes, in turn; every rank must call it."""
    shape = plan.ranks
    config = shape.semi_causal(max_tokens=longest_rows(shape))
    # Equal batches: what is compared is the spreading, not the luck of the spans.
    given = batches(shape, ratio=RATIO, count=2)
    replicated, sharded = build(config), build(config)
    parameters = num_parameters(replicated)
    ddp = DistributedDataParallel(replicated, gradient_as_bucket_view=True)
    steps: dict[str, Step] = {
        "zero3": engine_step(engine_of(sharded, stage=3, precision="fp32"), given),
        "ddp": plain_step(ddp, our_losses(ddp, given)),
    }
    contestants = [
        Contestant(
            name=name,
            step=step,
            tokens=shape.tokens * dist.get_world_size(),
            parameters=parameters,
            precision="fp32",
        )
        for name, step in steps.items()
    ]
    seconds = alternate(contestants, plan.heavy)
    return Findings(
        case="zero3",
        settings=shape.settings(encoder=True)
        | {"ranks": dist.get_world_size(), "threads_per_rank": 1, "tokens_per_rank": shape.tokens},
        contestants=record(contestants, seconds),
        ratios={"zero3_vs_ddp": ratio(seconds["zero3"], seconds["ddp"])},
    )
