"""Divided attention: each tube of a video sees its place at all times, and then its own time."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.attention import SpanGrid, SpanSelfAttention
from model.block import PRE_NORM_STD, bias_left
from model.encoders.protocol import EncoderKind
from model.layers import Layers, normal
from model.recompute import Recompute
from model.style import Style


@dataclass(frozen=True)
class Frames:
    """Where rows lie in the grid of all times of all videos.

    Attributes:
        grid: of class rows, copied for each time, and the tubes.
        class_rows: N, one for each video before all tubes; 0 where there are none.
        times: T, of each video.
    """

    grid: SpanGrid
    class_rows: int
    times: int


class FrameAttention(SpanSelfAttention):
    """Attention within each time of a video.

    The class row of a video is in each of its times, and gets the mean of what it sees there.

    Source: TimeSformer (2102.05095) §3, as its authors compute it.
    """

    def _mix(self, qkv: Tensor, frames: Frames, bias: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # of its own block
        N, T = frames.class_rows, frames.times
        real = frames.grid.num_rows - N * T + N
        copies = qkv[:N].repeat_interleave(T, dim=0)
        mixed = super()._mix(torch.cat([copies, qkv[N:real]]), frames.grid, bias)
        means = mixed[: N * T].view(N, T, mixed.shape[-1]).mean(dim=1)
        return F.pad(torch.cat([means, mixed[N * T :]]), (0, 0, 0, len(qkv) - real))


class TimeMixing(nn.Module):
    """What divided attention does before a block: each place sees itself at all times.

    A norm, attention, and a linear layer behind that of the attention; a residual around them.

    Source: TimeSformer (2102.05095) §3, as its authors compute it.
    """

    def __init__(
        self,
        config: EncoderKind,
        layers: Layers,
        recompute: Recompute,
        *,
        dropout: float,
        style: Style,
    ):
        super().__init__()
        width = config.width
        self.recompute: Recompute = recompute
        inner = normal(PRE_NORM_STD)
        out = normal(PRE_NORM_STD / math.sqrt(2 * config.num_layers))
        self.norm = layers.norm(width, epsilon=style.norm_epsilon)
        self.attention = SpanSelfAttention(
            width,
            config.heads,
            layers=layers,
            query_key_init=inner,
            value_init=inner,
            out_init=inner,
            style=style,
            recompute=recompute,
        )
        self.projection = layers.linear(width, width, init=out)
        self.dropout = layers.dropout(dropout)

    def forward(
        self, x: Float[Tensor, "R E"], grid: SpanGrid, bias: Tensor | None
    ) -> Float[Tensor, "R E"]:
        """Rows behind what they have seen at other times."""
        mixed = self.attention(self.norm(x), grid, bias)
        left = bias_left(self.attention.out)
        mixed = self.dropout(mixed if left is None else mixed + left)
        return x + self.projection(mixed)
