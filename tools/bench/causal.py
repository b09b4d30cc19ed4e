"""Causal mode against peers: full training steps of the same model."""

from parallel.launch import multiplies_bf16
from tools.bench.peers import PEERS, matched
from tools.bench.rounds import Contestant, Findings
from tools.bench.shapes import Plan, Shape
from tools.bench.training import build, our_loss, plain, under_zero

OURS = "semicausal"


def same_precision(plan: Plan) -> Findings:
    """fp32 on both sides: ours, transformers' Llama and GPT-2, in one loop."""
    return _beside(plan, "llama", "gpt2")


def litgpt(plan: Plan) -> Findings:
    """fp32 on both sides: ours and litgpt."""
    return _beside(plan, "litgpt")


def defaults(plan: Plan) -> Findings:
    """Each as it comes: what `python -m train` does here against Llama in fp32.

    And, both in bf16 with fp32 weights behind: ours against Llama under autocast.
    """
    shape = plan.peers
    precision = "bf16" if multiplies_bf16() else "fp32"
    given = shape.batches(ratio=0, count=1)
    ours = under_zero(OURS, shape.causal(), given, stage=1, precision=precision)
    found = Findings(settings=_settings(shape) | {"default_precision": precision, "zero_stage": 1})
    found.compare(
        [ours, *(_peer("llama", shape, ours.parameters, autocast=cast) for cast in (False, True))],
        plan.light,
        {
            "causal_vs_llama_default": ("llama", OURS),
            "causal_vs_llama_autocast": ("llama autocast", OURS),
        },
    )
    return found


def _beside(plan: Plan, *names: str) -> Findings:
    shape = plan.peers
    ours = plain(OURS, build(shape.causal()), our_loss, shape.batches(ratio=0, count=1))
    found = Findings(settings=_settings(shape))
    found.compare(
        [ours, *(_peer(name, shape, ours.parameters) for name in names)],
        plan.light,
        {f"causal_vs_{name}_same_precision": (name, OURS) for name in names},
    )
    return found


def _settings(shape: Shape) -> dict[str, object]:
    step = "forward, loss, backward, clipping, fused AdamW; SDPA; no compile; no dropout"
    return shape.settings | {"step": step}


def _peer(name: str, shape: Shape, parameters: int, *, autocast: bool = False) -> Contestant:
    peer = PEERS[name]
    model = matched(peer, shape, parameters=parameters).train()
    if autocast:
        name += " autocast"
    return plain(name, model, peer.loss, shape.batches(ratio=0, count=1), autocast=autocast)
