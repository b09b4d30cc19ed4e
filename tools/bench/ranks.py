"""ZeRO-3 against torch's DDP: two ranks with one thread each, the same model, batch and AdamW."""

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tools.bench.rounds import Findings
from tools.bench.shapes import RATIO, Plan
from tools.bench.training import build, our_loss, plain, under_zero


def zero3_vs_ddp(plan: Plan) -> Findings:
    """Both in the same processes, in turn; every rank must call it."""
    shape = plan.ranks
    config = shape.semi_causal()
    # Equal batches: what is compared is the spreading, not the luck of the spans.
    given = shape.batches(ratio=RATIO, count=2)
    ddp = DistributedDataParallel(build(config), gradient_as_bucket_view=True)
    contestants = [
        under_zero("zero3", config, given, stage=3, precision="fp32"),
        plain("ddp", ddp, our_loss, given),
    ]
    found = Findings(
        settings=shape.settings
        | {"ranks": dist.get_world_size(), "threads_per_rank": 1, "tokens_per_rank": shape.tokens}
    )
    found.compare(contestants, plan.heavy, {"zero3_vs_ddp": ("zero3", "ddp")})
    return found
