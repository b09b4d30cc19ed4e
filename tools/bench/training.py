"""Training steps to be timed: ours and anyone's, plain or as `python -m train` takes them."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.batch import Batch
from model.semicausal import ModelConfig, SemiCausal
from parallel.engine import build_engine, build_part, parameter_groups
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh, build_mesh
from parallel.zero.config import AdamW, Precision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from tools.bench.rounds import Contestant, Step
from tools.random_batches import SEED
from train.step import PendingStep, accumulate, update

ADAMW = AdamW(learning_rate=3e-4)


def build(config: ModelConfig) -> SemiCausal:
    """Our whole model with its first weights."""
    return build_part(config, LayoutConfig(), _mesh(), seed=SEED)


def plain(
    name: str,
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    given: Sequence[Batch],
    *,
    autocast: bool = False,
) -> Contestant:
    """Forward, loss, backward, clipping, fused AdamW: the same code for every contestant.

    Args:
        name: of the contestant.
        model: what is trained, in fp32.
        loss: mean loss of a model on a batch.
        given: batches, round and round.
        autocast: whether the forward is in bf16.
    """
    update = plain_update(model)
    upcoming = cycle(given)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            mean = loss(model, next(upcoming))
        mean.backward()
        update()

    return Contestant(
        name=name,
        step=step,
        tokens=given[0].tokens.numel() * dist.get_world_size(),
        parameters=num_parameters(model),
        precision="bf16" if autocast else "fp32",
    )


def plain_update(model: nn.Module) -> Step:
    """Clipping and fused AdamW on the gradients that are there."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, weight_decay=ADAMW.weight_decay),
        lr=ADAMW.learning_rate,
        betas=ADAMW.betas,
        eps=ADAMW.epsilon,
        fused=True,
    )
    assert ADAMW.clip_norm is not None
    clip_norm = ADAMW.clip_norm

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def our_loss(model: Any, batch: Batch) -> Tensor:
    """Mean loss of our model on a batch."""
    return model(batch).total / batch.num_scored


def under_zero(
    name: str,
    config: ModelConfig,
    given: Sequence[Batch],
    *,
    stage: Literal[1, 3],
    precision: Precision,
) -> Contestant:
    """Our whole model under ZeRO, trained on batches round and round as by `python -m train`."""
    model = build(config)
    parameters = num_parameters(model)
    return Contestant(
        name=name,
        step=engine_step(engine_of(model, stage=stage, precision=precision), given),
        tokens=given[0].tokens.numel() * dist.get_world_size(),
        parameters=parameters,
        precision=precision,
    )


def engine_of(model: SemiCausal, *, stage: Literal[1, 3], precision: Precision) -> ZeroEngine:
    """The model under ZeRO, as `python -m train` builds it; needs a process group."""
    return build_engine(
        model, _mesh(), adamw=ADAMW, zero=ZeroConfig(stage=stage), precision=precision
    )


def engine_step(engine: ZeroEngine, given: Sequence[Batch], *, at_once: int = 1) -> Step:
    """A step of `python -m train`, without its log: the next `at_once` batches, round and round.

    As there, the host asks for a step's result when the next one's gradients are under way.
    """
    upcoming = cycle(given)
    launched: list[PendingStep] = []

    def step() -> None:
        gradients = accumulate(engine, [next(upcoming) for _ in range(at_once)])
        if launched:
            launched.pop().result()
        launched.append(update(engine, gradients))

    return step


def _mesh() -> Mesh:
    return build_mesh(LayoutConfig(), World.here())


def num_parameters(model: nn.Module) -> int:
    """Parameters that train, shared ones once; call it before ZeRO-3 cuts them up."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
