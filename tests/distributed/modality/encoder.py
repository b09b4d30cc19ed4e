"""An encoder of patches: bytes as numbers, projected, and blocks in which they see each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from model.attention import SpanGrid
from model.batch import PackedSpans
from model.block import run_block
from model.encoders.protocol import EncoderKind, SpanLoad, Stack
from model.layers import Layers, normal, xavier
from model.recompute import Recompute


class PatchEncoderConfig(EncoderKind):
    """Shape of the encoder, and what of it trains."""

    kind: Literal["patch"]
    patch_bytes: int
    max_patches: int
    projection_trains: bool = True
    init_from: str | None = None

    @property
    def longest_span(self) -> int:
        return self.max_patches

    def architecture(self, *, vocabulary: int) -> dict[str, Any]:
        return self.model_dump(exclude={"init_from", "projection_trains"})

    def build(self, *, vocabulary: int, layers: Layers, recompute: Recompute) -> nn.Module:
        return PatchEncoder(self, layers, recompute)

    def stacks(self, load: SpanLoad) -> tuple[Stack, ...]:
        stack = Stack(
            num_blocks=self.num_layers,
            width=self.width,
            hidden=self.feed_forward,
            heads=self.heads,
            rows=load.vectors,
            cells=load.spans * load.longest,
            pairs=load.spans * load.longest**2,
            dropout=False,
            trains=True,
            bias_trains=True,
        )
        return (stack,)

    def faults(
        self, path: str, *, vocabulary: int, longest: int, is_supplied: bool
    ) -> Iterator[str]:
        if longest > self.max_patches:
            yield f"{path}.max_patches: {self.max_patches} are fewer than an item has ({longest})"


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchSpans(PackedSpans):
    """Pictures, patch after patch.

    Attributes:
        patches: [M, P] bytes of each patch as numbers up to 1.
        cells: [M] place in the padded [N, L] grid.
        num_spans: N.
        longest_rows: L.
    """

    patches: Float[Tensor, "M P"]
    cells: Int64[Tensor, "M"]
    num_spans: int
    longest_rows: int


class PatchEncoder(nn.Module):
    """One linear layer, then bidirectional blocks, where a patch tells itself from the others."""

    def __init__(self, config: PatchEncoderConfig, layers: Layers, recompute: Recompute):
        super().__init__()
        self.projection = layers.linear(config.patch_bytes, config.width, init=xavier())
        self.share = layers.share
        self.bias = layers.table(2, config.heads, init=normal(0.5))
        self.blocks = config.blocks(layers, recompute)
        self.projection.requires_grad_(config.projection_trains)

    def forward(self, spans: PatchSpans) -> Float[Tensor, "M E"]:
        M = spans.num_vectors
        grid = SpanGrid(spans.cells[:M], spans.num_spans, spans.longest_rows)
        x = self.projection(spans.patches[:M])
        others = 1 - torch.eye(grid.longest_rows, dtype=torch.int64)
        bias = self.share(self.bias(others)).permute(2, 0, 1)[None]
        bias = bias.masked_fill(grid.padding(), float("-inf"))
        for block in self.blocks:
            x = run_block(block, x, grid, bias)
        return x
