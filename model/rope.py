"""Rotary positions: queries and keys turned by their place, and what stretches them.

Source: RoFormer (2104.09864), halves of a head's channels against each other as in Llama.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from model.config import Config, Tokens

Factor = Annotated[float, Field(ge=1, le=1e6)]


class LinearScaling(Config):
    """All angles divided by a factor (2306.15595)."""

    kind: Literal["linear"]
    factor: Factor


class Llama3Scaling(Config):
    """Long wavelengths stretched by a factor, short ones kept, as in Llama 3.1 and later.

    Source: The Llama 3 Herd of Models (2407.21783), and `llama3` of transformers' ropes.
    """

    kind: Literal["llama3"]
    factor: Factor
    low_factor: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Wavelengths above `original_tokens` over this are stretched whole."""
    high_factor: Annotated[float, Field(gt=0, le=1e6)] = 4.0
    """Wavelengths below `original_tokens` over this are kept; between the two, in part."""
    original_tokens: Tokens
    """Longest sequence before it was stretched."""


RopeScaling = Annotated[LinearScaling | Llama3Scaling, Field(discriminator="kind")]


def rotations(
    positions: Int64[Tensor, "P S"],
    *,
    width: int,
    theta: float,
    scaling: RopeScaling | None = None,
) -> Float[Tensor, "2 P S 1 D"]:
    """Cosines and sines that turn queries and keys at these positions.

    Args:
        positions: of each slot; P is 1 where all sequences have the same.
        width: D.
        theta: the longest wavelength is 2 pi theta.
        scaling: what stretches wavelengths.
    """
    steps = torch.arange(0, width, 2, device=positions.device).float()
    frequencies = theta ** (-steps / width)
    if isinstance(scaling, LinearScaling):
        frequencies = frequencies / scaling.factor
    elif scaling is not None:
        turns = scaling.original_tokens / (2 * math.pi / frequencies)
        span = scaling.high_factor - scaling.low_factor
        kept = ((turns - scaling.low_factor) / span).clamp(0, 1)
        frequencies = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, :, None]
    return torch.stack([angles.cos(), angles.sin()])


def turned(x: Float[Tensor, "B S A D"], turns: Float[Tensor, "2 P S 1 D"]) -> Tensor:
    """Queries or keys, turned by their positions."""
    cosines, sines = turns.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines
