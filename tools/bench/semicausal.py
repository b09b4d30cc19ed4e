"""Cost of spans: semi-causal training steps over causal ones, against the FLOPs."""

from parallel.zero.config import Precision
from tools.bench import flops
from tools.bench.rounds import Findings, spread
from tools.bench.shapes import RATIO, Plan
from tools.bench.training import under_zero

NUM_BATCHES = 4
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def over_causal(plan: Plan) -> Findings:
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
