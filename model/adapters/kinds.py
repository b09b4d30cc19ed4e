"""The kinds of adapters, as configured."""

import math
from typing import Annotated, Literal

from pydantic import Field

from model.adapters.patterns import Pattern
from model.config import Config, Dropout, PathText

Rank = Annotated[int, Field(ge=1, le=2**17)]


class LoraConfig(Config):
    """Which linear layers get low-rank adapters, and how large.

    Source: LoRA (2106.09685): W + (alpha / rank) B A, with B zero at first.
    """

    rank: Rank = 8
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    scale: Literal["rank", "root_rank"] = "rank"
    """What alpha is divided by: the rank, or its root, as in rsLoRA (2312.03732)."""
    dropout: Dropout = 0.0
    targets: list[Pattern] = Field(default=["qkv", "out", "up", "down"], min_length=1)
    """Linear layers of decoder, encoders and connectors, by patterns over their names (see
    `model/adapters/patterns.py`): `qkv`, `decoder.blocks.{-4..-1}`, `connectors`, `!*.up`."""
    up_rate_ratio: Annotated[float, Field(gt=0, le=1e4)] = 1.0
    """Learning rate of B over that of A; LoRA+ (2402.12354) proposes 16."""
    init_from: PathText | None = None
    """Adapter in peft's file format that supplies the first values, instead of chance."""

    @property
    def factor(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (self.rank if self.scale == "rank" else math.sqrt(self.rank))


class BottleneckConfig(Config):
    """Narrow nets behind sublayers: y + up(GELU(down(y))), with `up` zero at first.

    Source: Houlsby et al. (1902.00751) §2.1.
    """

    width: Rank = 64
    """Channels of the narrow layer."""
    targets: list[Pattern] = Field(default=["attention.out", "feed_forward.down"], min_length=1)
    """Layers whose outputs it reads, by patterns over their names; those that end an attention or a
    feed-forward net, and those of connectors."""
