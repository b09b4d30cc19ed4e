"""Low-rank adapters: peft puts them on, we name, save and merge them."""

from typing import Annotated

from pydantic import Field

from model.config import Config

ADAPTER = "default"


class LoraConfig(Config):
    """Which layers get adapters, and how large.

    Source: LoRA (2106.09685): W + (alpha / rank) B A, with B zero at first.
    """

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: list[str] = Field(default=["qkv", "out", "up", "down"], min_length=1)
    """Names of the linear layers that get adapters, in decoder and encoders alike."""
