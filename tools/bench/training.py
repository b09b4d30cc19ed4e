"""Training steps to be timed: ours and anyone's, plain or as `python -m train` takes them."""

from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import torch
from torch import Tensor, nn

from model.batch import Batch
from model.layers import initialize
from model.semicausal import ModelConfig, SemiCausal
from parallel.mesh import data_mesh
from parallel.pipeline import forward_backward
from parallel.zero.config import AdamWOptions, Precision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from parallel.zero.engine import initialize as initialize_zero
from tools.bench.rounds import Step
from tools.bench.shapes import Shape
from train.data.collate import Collator, SpanCapacity
from train.data.sample import Sample
from train.data.spans.kinds import RandomSpans, RandomSpansConfig
from train.data.tokens import SpecialTokens
from train.optim import parameter_groups

SEED = 1
CLIP_NORM = 2.0
LEARNING_RATE = 3e-4
BETAS = (0.9, 0.98)
EPSILON = 1e-6
WEIGHT_DECAY = 0.01

FIRST_WORD = 5


def random_samples(shape: Shape, *, count: int) -> list[Sample]:
    """Random tokens in one document each; what they say does not matter to the clock."""
    random = np.random.default_rng(SEED)
    return [
        Sample(
            id=i, tokens=random.integers(FIRST_WORD, shape.vocabulary, shape.sequence_tokens + 1)
        )
        for i in range(count)
    ]


def batches(shape: Shape, *, ratio: float, count: int) -> list[Batch]:
    """Fixed batches of the same tokens whatever the ratio of slots in random spans."""
    samples = random_samples(shape, count=count * shape.sequences)
    config = RandomSpansConfig(ratio=ratio)
    policies = {"text": RandomSpans(config, seed=SEED, special=SpecialTokens())} if ratio else {}
    room_tokens, room_spans = config.room(shape.sequence_tokens)
    capacity = SpanCapacity(
        tokens=room_tokens, spans=room_spans, longest_tokens=config.longest(shape.sequence_tokens)
    )
    collate = Collator(
        sequence_tokens=shape.sequence_tokens,
        policies=dict(policies),
        capacities={"text": capacity},
        start_tokens={"text": 0},
        padding=0,
    )
    return [
        collate([(0, sample) for sample in samples[i : i + shape.sequences]])
        for i in range(0, len(samples), shape.sequences)
    ]


def longest_rows(shape: Shape) -> int:
    """Rows of the longest random span, its start token included."""
    return RandomSpansConfig().longest(shape.sequence_tokens) + 1


def build(config: ModelConfig) -> SemiCausal:
    """Our model with its first weights."""
    model = SemiCausal(config)
    initialize(model, seed=SEED)
    return model


def plain_step(model: nn.Module, losses: Callable[[], Tensor]) -> Step:
    """Forward, loss, backward, clipping, fused AdamW: the same code for every contestant.

    Args:
        model: what is trained.
        losses: computes the mean loss of the next batch.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )

    def step() -> None:
        losses().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_losses(model: nn.Module, given: Sequence[Batch]) -> Callable[[], Tensor]:
    """Mean loss of batch after batch, round and round."""
    upcoming = cycle(given)

    def losses() -> Tensor:
        batch = next(upcoming)
        return model(batch).total / batch.num_scored

    return losses


def engine_of(
    model: SemiCausal, *, stage: int, precision: Precision, device: torch.device | None = None
) -> ZeroEngine:
    """The model under ZeRO, as `python -m train` builds it; needs a process group."""
    return initialize_zero(
        model,
        param_groups=parameter_groups(model, WEIGHT_DECAY),
        optim=AdamWOptions(LEARNING_RATE, BETAS, EPSILON),
        precision=precision,
        config=ZeroConfig.model_validate({"stage": stage}),
        clip_norm=CLIP_NORM,
        mesh=data_mesh(device or torch.device("cpu")),
    )


def engine_step(engine: ZeroEngine, given: Sequence[Batch], *, ranks: int = 1) -> Step:
    """What a step of `python -m train` computes, without its exchange of counts and its log."""
    upcoming = cycle(given)

    def step() -> None:
        batch = next(upcoming)
        forward_backward(engine, [batch], scale=1 / (batch.num_scored * ranks))
        engine.step()

    return step


def num_parameters(model: nn.Module) -> int:
    """Parameters that train, shared ones once; call it before ZeRO-3 cuts them up."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
