"""Cost of spans: semi-causal training steps over causal ones, against the FLOPs."""

from model.semicausal import ModelConfig
from parallel.zero.config import Precision
from tools.bench import flops
from tools.bench.rounds import Contestant, Findings, alternate, ratio, record, spread
from tools.bench.shapes import Plan, Shape
from tools.bench.training import (
    batches,
    build,
    engine_of,
    engine_step,
    longest_rows,
    num_parameters,
)

RATIO = 0.25
NUM_BATCHES = 4
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def over_causal(plan: Plan) -> Findings:
    """Training steps under ZeRO as `python -m train` takes them, with and without spans."""
    shape = plan.proportions
    semi = shape.semi_causal(max_tokens=longest_rows(shape))
    found = Findings(
        case="semi_causal",
        settings=shape.settings(encoder=True)
        | {"ratio": RATIO, "longest_span_rows": longest_rows(shape), "zero_stage": 1},
    )
    for precision in PRECISIONS:
        contestants = [
            _trainer("semi-causal", shape, semi, ratio=RATIO, precision=precision),
            _trainer("causal", shape, shape.causal(), ratio=0, precision=precision),
        ]
        seconds = alternate(contestants, plan.heavy)
        found.contestants |= record(contestants, seconds)
        over, under = (seconds[contestant.name] for contestant in contestants)
        found.ratios[f"semi_causal_over_causal_{precision}"] = ratio(over, under)
    found.ratios["semi_causal_over_causal_flops"] = spread([predicted(shape)])
    return found


def predicted(shape: Shape) -> float:
    """The ratio of step times if every operation took equally long."""
    semi, causal = shape.semi_causal(max_tokens=longest_rows(shape)), shape.causal()
    over, under = (
        sum(
            flops.count(config, batch).training
            for batch in batches(shape, ratio=ratio, count=NUM_BATCHES)
        )
        for config, ratio in ((semi, RATIO), (causal, 0.0))
    )
    return over / under


def _trainer(
    name: str, shape: Shape, config: ModelConfig, *, ratio: float, precision: Precision
) -> Contestant:
    model = build(config)
    parameters = num_parameters(model)
    given = batches(shape, ratio=ratio, count=NUM_BATCHES)
    return Contestant(
        name=f"{name} {precision}",
        step=engine_step(engine_of(model, stage=1, precision=precision), given),
        tokens=shape.tokens,
        parameters=parameters,
        precision=precision,
    )
