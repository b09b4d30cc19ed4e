"""AdamW and the learning rate of each step."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.config import Config
from parallel.zero.config import AdamW

MOST_STEPS = 10_000_000
"""The share of each source at each step is a table."""


class OptimConfig(Config):
    """AdamW and its schedule.

    The defaults of betas, eps, decay and clipping are those of the same authors' later models
    (the paper's own table was not found); see docs/decisions.
    """

    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate; AdamW moves a weight by about as much in a step."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    eps: Annotated[float, Field(ge=1e-20, le=1)] = 1e-6
    """Added to the root of the second moment, in single precision."""
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 0.01
    """On matrices alone: norms, biases and embeddings do not decay."""
    clip_norm: Annotated[float, Field(ge=1e-20, le=1e20)] = 2.0
    """Largest global gradient norm."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls from its peak to `final_ratio` of it at the last of `schedule_steps`."""
    schedule_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    """Steps over which the rate falls; what comes after them keeps their last rate. Default: all
    of the run. A run that is extended must say it, see docs/decisions."""
    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 375
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of master weights, moments and gradient sums. `bf16` (in runs of that precision) takes 8
    bytes a parameter instead of 18, but an update below about 1/256 of its weight is lost: for
    trying a model that would not fit, not for training it to the end."""

    @model_validator(mode="after")
    def _decays_less_than_all(self) -> "OptimConfig":
        if self.lr * self.weight_decay >= 1:
            raise ValueError(
                f"weight_decay: times lr it is {self.lr * self.weight_decay:g}, and a step "
                "would take away more than the whole weight: lower weight_decay or lr"
            )
        return self

    @property
    def adamw(self) -> AdamW:
        """What of it the engine is built with."""
        return AdamW(
            learning_rate=self.lr,
            betas=(self.beta1, self.beta2),
            epsilon=self.eps,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            precision=self.precision,
        )


def learning_rate(config: OptimConfig, *, step: int, total_steps: int) -> float:
    """Rate of step `step`, counted from 1: rises linearly to the peak, falls, then stays.

    Args:
        config: with the schedule.
        step: counted from 1.
        total_steps: of the run, over which the rate falls where `schedule_steps` says nothing.
    """
    total_steps = config.schedule_steps or total_steps
    step = min(step, total_steps)
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
