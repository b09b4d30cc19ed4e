"""Configuration of ZeRO: how training state is spread and stored. Imports no DeepSpeed."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Final, Literal

import torch
from pydantic import Field, model_validator

from model.config import Config, PathText

Precision = Literal["fp32", "bf16"]
"""Of what is stored."""
RunPrecision = Literal["fp32", "bf16", "fp8", "fp8_with_head"]
"""`fp8` stores all as `bf16` does, and multiplies inner layers of the decoder in fp8;
`fp8_with_head` the head, too."""

IN_FP8: Final[tuple[Literal["fp8"], Literal["fp8_with_head"]]] = ("fp8", "fp8_with_head")
"""Precisions that multiply in fp8."""

MOST_ELEMENTS = 2**40


class Sharding(Enum):
    """Where the full-precision weights and the moments live."""

    REPLICATED = auto()
    """In the parameters themselves, whole on every rank."""
    FLAT_GROUPS = auto()
    """In one flat tensor a parameter group, of which each rank holds a contiguous part."""
    FLAT_SUMS = auto()
    """Likewise, and each rank adds gradients up in a flat tensor of the whole group."""
    PER_PARAMETER = auto()
    """Each parameter is cut in as many equal parts as there are ranks."""


class ZeroConfig(Config):
    """How training state is spread over the ranks. Source: ZeRO, https://arxiv.org/abs/1910.02054."""

    stage: Literal[0, 1, 2, 3] = 1
    """What each rank holds only a share of: nothing (0), optimiser state (1), gradients too (2),
    parameters too (3)."""
    bucket_elements: Annotated[int, Field(gt=0, le=MOST_ELEMENTS)] = 50_000_000
    """Elements sent in one collective call, and at stage 3 about as many are updated at a time;
    larger is faster and takes more memory."""
    persist_parameters_below: Annotated[int, Field(ge=0, le=MOST_ELEMENTS)] = 10_000
    """Stage 3 keeps parameters of at most this many elements whole on every rank."""
    live_elements: Annotated[int, Field(ge=0, le=MOST_ELEMENTS)] = 1_000_000_000
    """Stage 3 keeps about this many elements of gathered parameters at a time, so that one used
    again soon is not gathered twice; smaller saves memory."""
    immediate_gradients: bool = True
    """In bf16 with fp32 sums, at stages 0 and 1: each gradient is added to its sum as soon as it is
    there, and dropped; without, all are kept until the backward has ended."""
    overlap: bool = False
    """At stage 2: gradients are reduced while the backward goes on, as stage 3 always does."""
    reduce_precision: Precision = "fp32"
    """In bf16 at stages 0 and 1: the type in which gradients travel between ranks; they are summed
    in fp32 either way. `bf16` sends half, and rounds each rank's gradient once."""
    offload_directory: PathText | None = None
    """At stage 3 on CPUs: a directory on a local disk for the master weights and moments, of which
    memory then holds only what is being updated. It needs 12 bytes a parameter of a rank's share,
    and is empty again after the run. Default: all is kept in memory."""

    def faults(self, precision: str, *, states: str) -> list[str]:
        """What of it a run of this precision, and of these masters and moments, cannot have."""
        rules = [
            (
                self.overlap and self.stage != 2,
                "zero.overlap: is a choice at zero.stage 2 alone: the stages below reduce when all "
                "gradients are there, and stage 3 always while they come; leave it out",
            ),
            (
                self.reduce_precision == "bf16"
                and (self.stage > 1 or precision == "fp32" or states == "bf16"),
                "zero.reduce_precision: bf16 is for runs in precision bf16 at zero.stage 0 or 1 "
                "with optim.precision fp32, whose sums we take ourselves: change these, or leave "
                "it out",
            ),
        ]
        return [message for is_broken, message in rules if is_broken]

    @model_validator(mode="after")
    def _cross_check(self) -> "ZeroConfig":
        if self.offload_directory is not None and self.stage != 3:
            raise ValueError(
                f"offload_directory needs stage 3, which updates some parameters at a time; stage "
                f"{self.stage} updates all of them at once, from memory"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """How parameters are updated.

    Attributes:
        learning_rate: of the first step; the engine's `set_learning_rate` changes it.
        betas: decay of the moments.
        epsilon: added to the root of the second moment.
        weight_decay: of matrices; norms, biases and embeddings have none.
        clip_norm: gradients of a larger global norm are scaled down to it; None for never.
        precision: type of masters, moments and gradient sums. In bf16 the parameters are their own
            masters.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float | None = 2.0
    precision: Precision = "fp32"


FP8_CAPABILITY = (8, 9)
"""Compute capability from which tensor cores multiply fp8."""


def why_unsupported(stage: int, precision: RunPrecision) -> str | None:
    """Why this machine cannot train at this stage and precision, or None if it can.

    On a CPU all run, fp8 emulated; on CUDA what may be missing is the hardware.
    """
    if precision == "fp32" or not torch.cuda.is_available():
        return None
    device_name = torch.cuda.get_device_name()
    if precision in IN_FP8 and (capability := torch.cuda.get_device_capability()) < FP8_CAPABILITY:
        return (
            f"{device_name} multiplies no fp8 (its compute capability is "
            f"{'.'.join(map(str, capability))}, 8.9 is needed): use bf16"
        )
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return f"{device_name} has no bfloat16 arithmetic, at ZeRO-{stage} or any other stage: use fp32"
