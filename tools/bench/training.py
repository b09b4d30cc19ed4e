"""Training steps to be timed: ours and anyone's, plain or as `python -m train` takes them."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Literal

import torch
from torch import Tensor, nn

from model.batch import Batch
from model.semicausal import ModelConfig, SemiCausal
from parallel.engine import build_engine, build_part, parameter_groups
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh, build_mesh
from parallel.zero.config import AdamW, Precision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from tools.bench.rounds import Step
from tools.bench.shapes import Shape
from tools.random_batches import SEED, random_batches
from train.data.spans.at_random import RandomSpansConfig
from train.step import train_step

ADAMW = AdamW(learning_rate=3e-4)


def batches(shape: Shape, *, ratio: float, count: int) -> list[Batch]:
    """Fixed batches of the same tokens whatever the ratio of slots in random spans."""
    return random_batches(
        vocabulary=shape.vocabulary,
        sequence_tokens=shape.sequence_tokens,
        sequences=shape.sequences,
        ratio=ratio,
        count=count,
    )


def longest_rows(shape: Shape) -> int:
    """Rows of the longest random span, its start token included."""
    return RandomSpansConfig().longest(shape.sequence_tokens) + 1


def build(config: ModelConfig) -> SemiCausal:
    """Our whole model with its first weights."""
    return build_part(config, LayoutConfig(), _mesh(), seed=SEED)


def plain_step(model: nn.Module, losses: Callable[[], Tensor]) -> Step:
    """Forward, loss, backward, clipping, fused AdamW: the same code for every contestant.

    Args:
        model: what is trained.
        losses: computes the mean loss of the next batch.
    """
    update = plain_update(model)

    def step() -> None:
        losses().backward()
        update()

    return step


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


def our_losses(model: nn.Module, given: Sequence[Batch]) -> Callable[[], Tensor]:
    """Mean loss of batch after batch, round and round."""
    upcoming = cycle(given)

    def losses() -> Tensor:
        batch = next(upcoming)
        return model(batch).total / batch.num_scored

    return losses


def engine_of(model: SemiCausal, *, stage: Literal[0, 1, 2, 3], precision: Precision) -> ZeroEngine:
    """The model under ZeRO, as `python -m train` builds it; needs a process group."""
    return build_engine(
        model, _mesh(), adamw=ADAMW, zero=ZeroConfig(stage=stage), precision=precision
    )


def engine_step(engine: ZeroEngine, given: Sequence[Batch], *, at_once: int = 1) -> Step:
    """A step of `python -m train`, without its log.

    Args:
        engine: what is trained.
        given: batches, round and round.
        at_once: microbatches of a step.
    """
    upcoming = cycle(given)

    def step() -> None:
        microbatches = [next(upcoming) for _ in range(at_once)]
        train_step(engine, microbatches)

    return step


def _mesh() -> Mesh:
    return build_mesh(LayoutConfig(), World.here())


def num_parameters(model: nn.Module) -> int:
    """Parameters that train, shared ones once; call it before ZeRO-3 cuts them up."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
