"""A tiny semi-causal model trained for a few steps: by an oracle, and on ranks under ZeRO."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from model.batch import Batch
from model.layers import initialize
from model.semicausal import ModelConfig, SemiCausal
from parallel.zero import AdamWOptions, ZeroConfig
from parallel.zero import initialize as initialize_zero
from train.data.collate import Collator, SpanCapacity
from train.data.sample import Sample
from train.data.spans import NO_SPANS, Spans
from train.optim import parameter_groups
from train.step import train_step

NUM_STEPS = 5
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
CLIP_NORM = 0.3
SEQUENCES = 8
SLOTS = 48

MODEL = {
    "decoder": {
        "vocabulary": 97,
        "width": 32,
        "num_layers": 2,
        "heads": 4,
        "feed_forward": 64,
        "max_tokens": SLOTS,
        "loss_chunk_tokens": 40,
    },
    "encoders": {
        "text": {
            "encoder": {
                "width": 16,
                "num_layers": 2,
                "heads": 2,
                "feed_forward": 32,
                "max_tokens": 24,
                "dropout": 0.0,
            }
        }
    },
}


@dataclass(frozen=True)
class Layout:
    stage: Literal[0, 1, 2, 3]
    micro_sequences: int
    spans: str = "everywhere"
    norm: str = "deepnorm"


class UnevenSpans:
    """Spans in some samples only: the last four of eight have none, so rank 1 of 2 has none."""

    def __init__(self, where: str):
        self.where = where

    def choose(self, sample: Sample, *, epoch: int) -> Spans:
        if self.where == "nowhere" or (self.where == "first rank" and sample.id % 8 >= 4):
            return NO_SPANS
        start = 2 + sample.id % 5
        return np.array([[start, start + 9], [start + 9, start + 14], [SLOTS - 6, SLOTS]])


def build(layout: Layout) -> SemiCausal:
    config = MODEL | {"decoder": MODEL["decoder"] | {"norm": layout.norm}}
    model = SemiCausal(ModelConfig.model_validate(config))
    initialize(model, seed=3)
    return model


def microbatches(layout: Layout, step: int, *, rank: int = 0, ranks: int = 1) -> list[Batch]:
    random = np.random.default_rng(step)
    samples = [
        Sample(
            id=step * SEQUENCES + i,
            # Uneven lengths: a mean of ranks' means would be another number.
            tokens=random.integers(4, 97, SLOTS + 1 if i % 3 else SLOTS // 2),
        )
        for i in range(SEQUENCES)
    ]
    # Spans must end inside the short samples too.
    policy = UnevenSpans(layout.spans)
    collate = Collator(
        sequence_tokens=SLOTS,
        policies={"text": _Inside(policy)},
        capacities={"text": SpanCapacity(tokens=24, spans=3, longest_tokens=23)},
        start_tokens={"text": 0},
        padding=3,
    )
    share = SEQUENCES // ranks
    mine = [(0, sample) for sample in samples[rank * share : (rank + 1) * share]]
    micro = layout.micro_sequences
    return [collate(mine[i : i + micro]) for i in range(0, share, micro)]


class _Inside:
    def __init__(self, policy: UnevenSpans):
        self.policy = policy

    def choose(self, sample: Sample, *, epoch: int) -> Spans:
        spans = self.policy.choose(sample, epoch=epoch)
        return spans[spans[:, 1] < len(sample.tokens)]


def oracle(layout: Layout) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step in one process, norm and clipping in fp64."""
    model = build(layout)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-6
    )
    history: list[tuple[float, float]] = []
    for step in range(NUM_STEPS):
        batches = microbatches(Layout(0, SEQUENCES, layout.spans, layout.norm), step)
        (batch,) = batches
        loss = model(batch).total / batch.num_scored
        optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([g.double().square().sum() for g in grads]).sum().sqrt().item()
        for grad in grads:
            grad.copy_((grad.double() * min(1.0, CLIP_NORM / (norm + 1e-6))).float())
        optimizer.step()
        history.append((loss.item(), norm))
    return history


def on_ranks(layout: Layout) -> list[tuple[float, float]]:
    """The same on this process group."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = build(layout)
    engine = initialize_zero(
        model,
        param_groups=parameter_groups(model, WEIGHT_DECAY),
        optim=AdamWOptions(LEARNING_RATE, (0.9, 0.98), 1e-6),
        precision="fp32",
        config=ZeroConfig(stage=layout.stage, persist_parameters_below=100),
        accumulation=SEQUENCES // ranks // layout.micro_sequences,
        clip_norm=CLIP_NORM,
        device=torch.device("cpu"),
    )
    history: list[tuple[float, float]] = []
    for step in range(NUM_STEPS):
        batches = microbatches(layout, step, rank=rank, ranks=ranks)
        if layout.spans == "first rank":
            expected = 3 * len(batches[0].tokens) if rank == 0 else 1
            assert batches[0].spans["text"].num_spans <= expected
        result = train_step(
            engine, batches, device=torch.device("cpu"), stop_requested=lambda: False
        )
        history.append((result.averages.loss, result.gradient_norm))
    engine.close()
    return history
