"""A tiny model with every awkward thing of the real one: a tied head that computes its gradients
in the forward, a bias, a norm, and (by choice) frozen parameters."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.engine import build_engine
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from parallel.zero.config import AdamW, Precision, ZeroConfig
from parallel.zero.engine import ZeroEngine

VOCABULARY = 31
WIDTH = 13  # odd, so that every kind of sharding has to pad
NUM_ROWS = 8
ROW_TOKENS = 5


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
        logits_NV = (hidden_ND @ weight_VD.T).float()
        scored_N1 = (labels_N != -100).unsqueeze(1)
        loss = F.cross_entropy(logits_NV, labels_N, ignore_index=-100, reduction="sum")
        targets_NV = F.one_hot(labels_N.clamp(min=0), VOCABULARY)
        errors_NV = ((logits_NV.softmax(-1) - targets_NV) * scored_N1).to(hidden_ND.dtype)
        ctx.save_for_backward(errors_NV @ weight_VD, errors_NV.T @ hidden_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        scale = gradients[0]
        return grad_hidden_ND * scale, grad_weight_VD * scale, None


class Head(nn.Module):
    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        return _HeadLoss.apply(hidden_BSD.flatten(0, 1), self.weight, labels_BS.flatten())


class Toy(nn.Module):
    def __init__(self, *, frozen: bool = False, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = Head(self.embedding)
        self.mix.weight.requires_grad_(not frozen)
        self.norm.bias.requires_grad_(not frozen)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens_BS, labels_BS = batch
        hidden_BSD = self.embedding(tokens_BS)
        # Rows, as in the real model: given more dimensions, the linear with which DeepSpeed's
        # ZeRO-3 replaces torch's, for the whole process, rounds before the bias is added.
        before_ND = hidden_BSD.roll(1, dims=1).flatten(0, 1)
        hidden_BSD = hidden_BSD + torch.tanh(self.mix(before_ND)).view_as(hidden_BSD)
        return self.head(self.norm(hidden_BSD), labels_BS)


def global_batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels of a step, [NUM_ROWS, ROW_TOKENS] each, unevenly scored."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(VOCABULARY, (NUM_ROWS, ROW_TOKENS), generator=generator)
    labels = tokens.roll(-1, dims=1)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
    labels[0] = -100
    return tokens, labels


LEARNING_RATE = 0.01
ADAMW = AdamW(learning_rate=LEARNING_RATE, weight_decay=0.1, clip_norm=0.5)


def engine_of(
    model: nn.Module,
    *,
    stage: Any,
    precision: Precision = "fp32",
    adamw: AdamW = ADAMW,
    **zero: Any,
) -> ZeroEngine:
    # Small enough that stage 3 shards the matrices, keeps the vectors whole, and lets go of
    # parameters between their uses.
    config = ZeroConfig(stage=stage, persist_parameters_below=20, live_elements=0, **zero)
    mesh = build_mesh(LayoutConfig(), World.here())
    return build_engine(model, mesh, adamw=adamw, zero=config, precision=precision)


def train_step(
    engine: ZeroEngine, step: int, *, accumulation: int = 1, scale: float = 1.0
) -> tuple[float, float]:
    """One step on this rank's share of the global batch; the global loss and gradient norm."""
    tokens, labels = global_batch(step)
    num_scored = int((labels != -100).sum())
    engine.set_learning_rate(LEARNING_RATE / (1 + step))
    num_ranks = dist.get_world_size()
    rows = torch.arange(NUM_ROWS).view(accumulation, num_ranks, -1)
    total = torch.zeros(1, dtype=torch.float64)
    with engine.accumulating(accumulation):
        for microbatch in range(accumulation):
            mine = rows[microbatch, dist.get_rank()]
            loss = engine((tokens[mine], labels[mine])) * scale / num_scored
            (loss * num_ranks).backward()
            total += loss.detach()
    dist.all_reduce(total)
    return float(total), engine.step().read().norm


def evaluate(engine: ZeroEngine) -> float:
    """Loss of a fixed batch, whole on every rank."""
    with engine.evaluating():
        return float(engine(global_batch(999)))
