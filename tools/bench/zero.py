"""Our training under ZeRO: what spans cost over what FLOPs predict; ZeRO-3 beside torch's DDP."""

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from parallel.zero.config import Precision
from tools.bench import flops
from tools.bench.rounds import Findings, spread
from tools.bench.shapes import RATIO, Plan
from tools.bench.training import build, our_loss, plain, under_zero

NUM_BATCHES = 4
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def spans_over_none(plan: Plan) -> Findings:
    """Training steps under ZeRO as `python -m train` takes them, with and without spans."""
    shape = plan.proportions
    modes = {
        "semi-causal": (shape.semi_causal(), shape.batches(ratio=RATIO, count=NUM_BATCHES)),
        "causal": (shape.causal(), shape.batches(ratio=0, count=NUM_BATCHES)),
    }
    found = Findings(
        settings=shape.settings
        | {"ratio": RATIO, "longest_span_rows": shape.longest_rows, "zero_stage": 1}
    )
    for precision in PRECISIONS:
        contestants = [
            under_zero(f"{name} {precision}", config, given, stage=1, precision=precision)
            for name, (config, given) in modes.items()
        ]
        over, under = (contestant.name for contestant in contestants)
        key = f"semi_causal_over_causal_{precision}"
        found.compare(contestants, plan.heavy, {key: (over, under)})
    # The ratio of step times if every operation took equally long.
    over, under = (
        sum(flops.training(config, batch) for batch in given) for config, given in modes.values()
    )
    found.ratios["semi_causal_over_causal_flops"] = spread([over / under])
    return found


def zero3_vs_ddp(plan: Plan) -> Findings:
    """Two ranks of one thread, both ways in turn on the same model, batches and AdamW.

    Every rank must call it.
    """
    shape = plan.ranks
    config = shape.semi_causal()
    # Equal batches: what is compared is the spreading, not the luck of the spans.
    given = shape.batches(ratio=RATIO, count=2)
    ddp = DistributedDataParallel(build(config), gradient_as_bucket_view=True)
    found = Findings(
        settings=shape.settings
        | {"ranks": dist.get_world_size(), "threads_per_rank": 1, "tokens_per_rank": shape.tokens}
    )
    contestants = [
        under_zero("zero3", config, given, stage=3, precision="fp32"),
        plain("ddp", ddp, our_loss, given),
    ]
    found.compare(contestants, plan.heavy, {"zero3_vs_ddp": ("zero3", "ddp")})
    return found
