"""AdamW's groups and the learning rate of each step."""

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from model.config import Config


class OptimConfig(Config):
    """AdamW and its schedule.

    The defaults of betas, eps, decay and clipping are those of the same authors' later models
    (the paper's own table was not found); see docs/decisions.
    """

    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """On matrices alone: norms, biases and embeddings do not decay."""
    clip_norm: Annotated[float, Field(gt=0)] = 2.0
    """Largest global gradient norm."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls from its peak to `final_ratio` of it at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 375
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of master weights, moments and gradient sums. `bf16` (in runs of that precision) takes 8
    bytes a parameter instead of 18, but an update below about 1/256 of its weight is lost: for
    trying a model that would not fit, not for training it to the end."""


def learning_rate(config: OptimConfig, *, step: int, total_steps: int) -> float:
    """Rate of step `step`, counted from 1: rises linearly to the peak, then falls."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    span = max(1, total_steps - config.warmup_steps)
    # The first step after the warm-up has the peak rate, and the last one still moves.
    progress = (step - 1 - config.warmup_steps) / span
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            share = 1 - progress
        case "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.final_ratio + (1 - config.final_ratio) * share)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices do; norms, biases and embeddings do not."""
    embedding = name.endswith(
        ("embedding.weight", "positions.weight", "relative_bias.weight", "head.weight")
    )
    return parameter.dim() >= 2 and not embedding


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups, with decay and without, in a fixed order."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if decays(name, p)]
    rest = [p for name, p in named if not decays(name, p)]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
