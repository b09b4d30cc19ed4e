"""Masked patches: the encoder sees few of a picture or video, and a decoder paints the rest.

Source: MAE (2111.06377) §3, VideoMAE (2203.12602) §3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.attention import SpanGrid, SpanSelfAttention
from model.batch import PackedSpans
from model.block import Block, run_block
from model.config import Depth, Heads, HiddenWidth, Width
from model.encoders.image import ImageEncoderConfig
from model.encoders.patches import PatchEncoderKind
from model.encoders.protocol import EncoderKind
from model.encoders.video import VideoEncoderConfig
from model.layers import Layers, normal
from model.loss import Loss
from model.objectives.protocol import ObjectiveKind
from model.recompute import Recompute
from model.style import Style

_COLORS = 3
_EPSILON = 1e-6
"""Added to the variance that a patch's pixels are divided by the root of."""


class MaskedPatchesConfig(ObjectiveKind):
    """Which patches are kept from the encoder, and the decoder that paints them.

    The decoder is no part of what is trained for: a later run leaves it behind.
    """

    kind: Literal["masked_patches"]
    share: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Of a picture's patches that are masked; one patch at least is seen. Of a video the same
    places at all its times, tubes through the whole of it, of which 0.9 is usual."""
    width: Width = 64
    """Channels of the decoder."""
    num_layers: Depth = 2
    heads: Heads = 4
    feed_forward: HiddenWidth = 256
    reads: ClassVar[tuple[type[EncoderKind], ...]] = (ImageEncoderConfig, VideoEncoderConfig)

    def build(
        self,
        encoder: Any,
        config: PatchEncoderKind,
        *,
        vocabulary: int,
        layers: Layers,
        recompute: Recompute,
    ) -> "Painter":
        """The decoder."""
        return Painter(self, config, layers, recompute)

    def faults(self, path: str, encoder: EncoderKind) -> Iterator[str]:
        """Another kind of encoder; sizes that do not fit."""
        yield from super().faults(path, encoder)
        if self.width % self.heads:
            yield f"{path}.heads: {self.heads} heads do not divide width {self.width}"
        if isinstance(encoder, ImageEncoderConfig) and encoder.relative_positions != "none":
            yield (
                f"{path}.kind: {self.kind} leaves patches out, and the encoder's "
                f"relative_positions ({encoder.relative_positions}) are of whole grids: choose none"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedPatches(PackedSpans):
    """Pictures or videos of which the encoder sees few patches.

    Attributes:
        seen: what it sees, each patch a vector, and no others.
        rows: [R, D] all patches, as the encoder has them.
        places: [R, 2 or 3] row and column of each, of a video behind its time.
        cells: [R] place of each in the padded [N, L] grid that the decoder's attention works on.
        kept: [K] rows that are seen, in the order of the vectors.
        masked: [C] the others, which are scored, in rising order; none of what is only padding.
        num_spans: N.
        longest_rows: L.
    """

    seen: Any
    rows: Tensor
    places: Int64[Tensor, "R X"]
    cells: Int64[Tensor, "R"]
    kept: Int64[Tensor, "K"]
    masked: Int64[Tensor, "C"]
    num_spans: int
    longest_rows: int


class Painter(nn.Module):
    """The decoder: what was seen and where nothing was, positions, blocks, pixels."""

    def __init__(
        self,
        objective: MaskedPatchesConfig,
        encoder: PatchEncoderKind,
        layers: Layers,
        recompute: Recompute,
    ):
        super().__init__()
        self.encoder_config = encoder
        width, depth = objective.width, objective.num_layers
        frames = encoder.tube_frames if isinstance(encoder, VideoEncoderConfig) else 1
        # VideoMAE compares each color of a tube with its own mean.
        self.groups = _COLORS if isinstance(encoder, VideoEncoderConfig) else 1
        self.widening: Any = layers.linear(encoder.width, width, init=normal(0.02))
        self.mask_embedding: Any = layers.table(1, width, init=normal(0.02))
        self.blocks = nn.ModuleList(
            Block(
                width=width,
                heads=objective.heads,
                hidden=objective.feed_forward,
                attention=SpanSelfAttention,
                layers=layers,
                style=Style(norm="pre"),
                depth=depth,
                recompute=recompute,
            )
            for _ in range(depth)
        )
        self.final_norm = layers.norm(width)
        channels = _COLORS * frames * encoder.patch_pixels**2
        self.pixels = layers.linear(width, channels, init=normal(0.02))

    def forward(self, encoder: Any, spans: MaskedPatches) -> Loss:
        """Mean squared error of the pixels of each masked patch."""
        painted = self.paint(encoder(spans.seen)[: len(spans.kept)], spans)
        wanted = self.encoder_config.normalized(spans.rows.index_select(0, spans.masked))
        return patch_loss(painted, own_scale(wanted, groups=self.groups))

    def paint(self, vectors: Float[Tensor, "K E"], spans: MaskedPatches) -> Float[Tensor, "C D"]:
        """Pixels of the masked patches."""
        x = self.mask_embedding(spans.kept.new_zeros(1)).expand(len(spans.rows), -1)
        x = x.index_copy(0, spans.kept, self.widening(vectors).to(x.dtype))
        x = x + waves(spans.places, x.shape[1]).to(x.dtype)
        grid = SpanGrid.fitted(spans.cells, spans.num_spans, spans.longest_rows)
        bias = grid.no_bias(like=x)
        for block in self.blocks:
            x = run_block(block, x, grid, bias)
        return self.pixels(self.final_norm(x.index_select(0, spans.masked)))


def own_scale(pixels: Float[Tensor, "C D"], *, groups: int) -> Float[Tensor, "C D"]:
    """Pixels with mean 0 and variance 1 in each patch, in as many groups of equal size.

    Source: MAE §4.1, normalised pixels.
    """
    size = pixels.shape[1] // groups
    apart = pixels.float().view(len(pixels), groups, size)
    apart = apart - apart.mean(dim=-1, keepdim=True)
    variance = apart.square().sum(dim=-1, keepdim=True) / max(1, size - 1)
    return (apart * torch.rsqrt(variance + _EPSILON)).view(pixels.shape)


def patch_loss(painted: Float[Tensor, "C D"], wanted: Float[Tensor, "C D"]) -> Loss:
    """Mean squared error of each patch."""
    terms = F.mse_loss(painted.float(), wanted, reduction="none").mean(dim=1)
    return Loss(terms.sum(), terms.detach())


def waves(places: Int64[Tensor, "R X"], width: int) -> Float[Tensor, "R D"]:
    """Positions by sines and cosines of ever longer waves, each coordinate in channels of its own.

    Computed in 64 bits, as places of long videos are many.
    """
    R, coordinates = places.shape
    num_waves = width // (2 * coordinates)
    lengths = 10_000.0 ** (torch.arange(num_waves, device=places.device).double() / num_waves)
    angles = places.double()[..., None] / lengths
    found = torch.cat([angles.sin(), angles.cos()], dim=-1).view(R, -1).float()
    return F.pad(found, (0, width - found.shape[1]))
