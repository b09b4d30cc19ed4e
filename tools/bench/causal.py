"""Causal mode against peers: full training steps of the same model."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from parallel.launch import multiplies_bf16
from tools.bench import peers
from tools.bench.rounds import Contestant, Findings, alternate, ratio, record
from tools.bench.shapes import Plan
from tools.bench.training import (
    batches,
    build,
    engine_of,
    engine_step,
    num_parameters,
    our_losses,
    plain_step,
)

OURS = "semicausal"


def same_precision(plan: Plan) -> Findings:
    """fp32 on both sides: ours, transformers' Llama and GPT-2, in one loop."""
    ours = _ours(plan)
    contestants = [ours, _llama(plan, ours.parameters), _gpt2(plan, ours.parameters)]
    seconds = alternate(contestants, plan.light)
    return Findings(
        case="causal",
        settings=_settings(plan),
        contestants=record(contestants, seconds),
        ratios={
            "causal_vs_llama_same_precision": ratio(seconds["llama"], seconds[OURS]),
            "causal_vs_gpt2_same_precision": ratio(seconds["gpt2"], seconds[OURS]),
        },
    )


def litgpt(plan: Plan) -> Findings:
    """fp32 on both sides: ours and litgpt."""
    ours = _ours(plan)
    [batch] = batches(plan.peers, ratio=0, count=1)
    contestants = [
        ours,
        _peer(
            "litgpt",
            plan,
            lambda hidden: peers.litgpt(plan.peers, hidden),
            lambda model: peers.litgpt_losses(model, batch.tokens, batch.labels),
            hidden=_gated(plan),
            parameters=ours.parameters,
        ),
    ]
    seconds = alternate(contestants, plan.light)
    return Findings(
        case="litgpt",
        settings=_settings(plan),
        contestants=record(contestants, seconds),
        ratios={"causal_vs_litgpt_same_precision": ratio(seconds["litgpt"], seconds[OURS])},
    )


def defaults(plan: Plan) -> Findings:
    """Each as it comes: what `python -m train` does here against Llama in fp32.

    And, both in bf16 with fp32 weights behind: ours against Llama under autocast.
    """
    precision = "bf16" if multiplies_bf16() else "fp32"
    model = build(plan.peers.causal())
    parameters = num_parameters(model)
    given = batches(plan.peers, ratio=0, count=1)
    contestants = [
        Contestant(
            name=OURS,
            step=engine_step(engine_of(model, stage=1, precision=precision), given),
            tokens=plan.peers.tokens,
            parameters=parameters,
            precision=precision,
        ),
        _llama(plan, parameters),
        _llama(plan, parameters, autocast=True),
    ]
    seconds = alternate(contestants, plan.light)
    return Findings(
        case="default",
        settings=_settings(plan) | {"default_precision": precision, "zero_stage": 1},
        contestants=record(contestants, seconds),
        ratios={
            "causal_vs_llama_default": ratio(seconds["llama"], seconds[OURS]),
            "causal_vs_llama_autocast": ratio(seconds["llama autocast"], seconds[OURS]),
        },
    )


def _settings(plan: Plan) -> dict[str, object]:
    step = "forward, loss, backward, clipping, fused AdamW; SDPA; no compile; no dropout"
    return plan.peers.settings(encoder=False) | {"step": step}


def _ours(plan: Plan) -> Contestant:
    model = build(plan.peers.causal())
    return Contestant(
        name=OURS,
        step=plain_step(model, our_losses(model, batches(plan.peers, ratio=0, count=1))),
        tokens=plan.peers.tokens,
        parameters=num_parameters(model),
        precision="fp32",
    )


def _gated(plan: Plan) -> int:
    # Three matrices instead of two: the usual 8/3 H.
    return round(8 * plan.peers.width / 3 / peers.MULTIPLE) * peers.MULTIPLE


def _llama(plan: Plan, parameters: int, *, autocast: bool = False) -> Contestant:
    [batch] = batches(plan.peers, ratio=0, count=1)

    def losses(model: nn.Module) -> Callable[[], Tensor]:
        plain = peers.transformers_losses(model, batch.tokens)
        if not autocast:
            return plain

        def cast() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return plain()

        return cast

    return _peer(
        "llama autocast" if autocast else "llama",
        plan,
        lambda hidden: peers.llama(plan.peers, hidden),
        losses,
        hidden=_gated(plan),
        parameters=parameters,
        precision="bf16" if autocast else "fp32",
    )


def _gpt2(plan: Plan, parameters: int) -> Contestant:
    [batch] = batches(plan.peers, ratio=0, count=1)
    return _peer(
        "gpt2",
        plan,
        lambda hidden: peers.gpt2(plan.peers, hidden),
        lambda model: peers.transformers_losses(model, batch.tokens),
        hidden=4 * plan.peers.width,
        parameters=parameters,
    )


def _peer(
    name: str,
    plan: Plan,
    build_peer: Callable[[int], nn.Module],
    losses: Callable[[nn.Module], Callable[[], Tensor]],
    *,
    hidden: int,
    parameters: int,
    precision: str = "fp32",
) -> Contestant:
    model, _ = peers.matched(build_peer, hidden=hidden, parameters=parameters)
    model.train()
    return Contestant(
        name=name,
        step=plain_step(model, losses(model)),
        tokens=plan.peers.tokens,
        parameters=num_parameters(model),
        precision=precision,
    )
