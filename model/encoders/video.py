"""The video encoder: tubes of patches see each other, all at once or over time and then space."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from model.attention import SpanGrid, SpanSelfAttention
from model.batch import PackedSpans
from model.block import run_block
from model.config import Dropout
from model.encoders.divided import FrameAttention, Frames, TimeMixing
from model.encoders.grid import Grid, nearest
from model.encoders.patches import PICTURE_KEYS, PatchEncoderKind, Side
from model.encoders.protocol import SpanLoad, Stack
from model.layers import NORM_EPSILON, Layers, normal
from model.recompute import Recompute
from model.steady import steady_rows
from model.style import Style

Frame = Annotated[int, Field(ge=1, le=2**10)]


class VideoEncoderConfig(PatchEncoderKind):
    """Shape of the video encoder, the videos it reads, and what of it trains."""

    kind: Literal["video"]
    frames: Frame = 16
    """Read of every video, whatever it has: those that are seen in the middle of as many equal
    parts of its time."""
    tube_frames: Frame = 2
    """That lie behind each other in a tube, which becomes one vector."""
    attention: Literal["joint", "divided"] = "joint"
    """Whether all tubes of a video see each other at once (VideoMAE), or each sees its own place at
    all times, and then all places of its own time (TimeSformer)."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """`sinusoidal` by the number of a tube in its video (VideoMAE), or `learned` for places and for
    times (TimeSformer)."""
    table: Annotated[list[Side], Field(min_length=3, max_length=3)] | None = None
    """Times, rows and columns of the learned positions; videos of other sizes read the nearest.
    Default: those of the videos, or the largest square of `max_patches`."""
    class_token: Literal["none", "dropped", "kept"] = "none"
    """Whether a learned row stands before the tubes, and its vector is the first of a video's or
    `dropped`."""
    dropout: Dropout = 0.0
    """Share of the embedding and of each residual branch dropped in training."""
    norm: Literal["pre", "post", "deepnorm"] = "pre"
    """`pre` in either; DeepNorm as in the text encoder."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = NORM_EPSILON
    """What is added to the variance that norms divide by."""
    final_norm: bool = True
    """Whether a norm stands behind the blocks."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"

    @model_validator(mode="after")
    def _has_whole_tubes(self) -> "VideoEncoderConfig":
        if self.frames % self.tube_frames:
            raise ValueError(
                f"frames: {self.frames} are not a multiple of tube_frames, which is "
                f"{self.tube_frames}: choose one"
            )
        return self

    @property
    def times(self) -> int:
        """Tubes behind each other, the same in every video."""
        return self.frames // self.tube_frames

    @property
    def table_sizes(self) -> tuple[int, int, int]:
        """Times, rows and columns of the learned positions."""
        if self.table is not None:
            times, rows, columns = self.table
            return times, rows, columns
        return (self.times, *self.table_grid)

    @property
    def class_rows(self) -> int:
        """Rows of a video before its tubes."""
        return int(self.class_token != "none")

    @property
    def kept_rows(self) -> int:
        """Vectors of a video before those of its tubes."""
        return int(self.class_token == "kept")

    def _vectors(self, grid: Grid) -> int:
        return self.times * grid[0] * grid[1] + self.kept_rows

    def item_vectors(self, size: Sequence[int]) -> int:
        """Vectors of a video; `size` is its frames, height, width and milliseconds."""
        return self._vectors(self.grid(size[1:3]))

    @property
    def longest_span(self) -> int:
        """Vectors of the largest video."""
        return self._vectors(self.largest_grid)

    def architecture(self, *, vocabulary: int) -> dict[str, Any]:
        """All but what only training asks for, and which videos are read."""
        left_out = {"dropout", "init_from", "trainable_layers", "frames"}
        table = list(self.table_sizes) if self.positions == "learned" else None
        return self.model_dump(exclude=left_out | PICTURE_KEYS) | {
            "table": table,
            "class_token": self.class_token != "none",
        }

    def build(self, *, vocabulary: int, layers: Layers, recompute: Recompute) -> "VideoEncoder":
        """The encoder; the vocabulary is nothing to it."""
        return VideoEncoder(self, layers, recompute)

    def stacks(self, load: SpanLoad) -> tuple[Stack, ...]:
        """The blocks that are fixed, and those that train; divided ones in two halves."""
        patches = load.vectors - load.spans * self.kept_rows
        rows = patches + load.spans * self.class_rows
        longest = load.longest + self.class_rows - self.kept_rows
        found: list[Stack] = []
        for num_blocks, trains in ((self.layers_fixed, False), (self.layers_in_training, True)):
            whole = Stack(
                num_blocks=num_blocks,
                width=self.width,
                hidden=self.feed_forward,
                heads=self.heads,
                rows=rows,
                cells=load.spans * longest,
                pairs=load.spans * longest**2,
                dropout=self.dropout > 0,
                trains=trains,
                bias_trains=False,
            )
            if self.attention == "joint":
                found.append(whole)
                continue
            # Half as wide as the width and back is as much as the layer behind the first half.
            over_time = {"rows": patches, "cells": patches, "pairs": patches * self.times}
            found.append(replace(whole, hidden=self.width // 2, **over_time))
            frame = (load.longest - self.kept_rows) / self.times + self.class_rows
            cells = load.spans * self.times * frame
            found.append(replace(whole, cells=cells, pairs=cells * frame))
        return tuple(found)

    def faults(
        self, path: str, *, vocabulary: int, longest: int, is_supplied: bool
    ) -> Iterator[str]:
        """Sizes that do not fit each other; layers left random."""
        yield from self.block_faults(path, is_supplied=is_supplied)
        yield from self.picture_faults(path)
        if self.table is not None and self.positions != "learned":
            yield f"{path}.table: sinusoids have none: leave it out, or set {path}.positions"


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoSpans(PackedSpans):
    """Videos, packed tube after tube: time after time, and in each row after row.

    The first `num_rows` rows are real. All videos have as many times; class rows have none here,
    and stand before all tubes, one for each video, where the encoder has them.

    Attributes:
        patches: [R, 3 T P P] red, then green, then blue of each tube's pixels, frame after frame,
            from 0 to 255.
        places: [R, 3] time, row and column of each tube.
        grids: [R, 2] rows and columns of its video.
        cells: [R, 3] place of each row in three padded grids that attention works on: of all rows
            of a video, of all times of a place, of all places of a time. Class rows come first.
        vectors: [M] rows that give a vector, behind the class rows.
        num_rows: real rows.
        num_spans: N, videos.
        num_places: of all videos together.
        longest_rows: rows of the largest video, its class row included.
        longest_frame: the same of one time.
    """

    patches: Tensor
    places: Int64[Tensor, "R 3"]
    grids: Int64[Tensor, "R 2"]
    cells: Int64[Tensor, "R 3"]
    vectors: Int64[Tensor, "M"]
    num_rows: int
    num_spans: int
    num_places: int
    longest_rows: int
    longest_frame: int


class VideoEncoder(nn.Module):
    """One linear layer over each tube, positions, blocks.

    Source: VideoMAE (2203.12602) §3.3, TimeSformer (2102.05095) §3.
    """

    waves: Tensor

    def __init__(self, config: VideoEncoderConfig, layers: Layers, recompute: Recompute = "none"):
        super().__init__()
        self.config = config
        width, channels = config.width, 3 * config.tube_frames * config.patch_pixels**2
        self.projection: Any = layers.linear(channels, width, init=normal(0.02))
        self.class_embedding: Any = None
        if config.class_rows:
            self.class_embedding = layers.table(1, width, init=normal(0.02))
        self.positions: Any = None
        self.time_positions: Any = None
        if config.positions == "learned":
            times, rows, columns = config.table_sizes
            places = config.class_rows + rows * columns
            self.positions = layers.table(places, width, init=normal(0.02))
            self.time_positions = layers.table(times, width, init=normal(0.02))
        else:
            rows, columns = config.largest_grid
            waves = interleaved_sinusoids(config.times * rows * columns, width)
            self.register_buffer("waves", waves, persistent=False)
        self.dropout = layers.dropout(config.dropout)
        style = Style(
            norm=config.norm, norm_epsilon=config.norm_epsilon, activation=config.activation
        )
        is_divided = config.attention == "divided"
        self.blocks = config.blocks(
            layers,
            recompute,
            dropout=config.dropout,
            style=style,
            attention=FrameAttention if is_divided else SpanSelfAttention,
        )
        self.times = nn.ModuleList(
            TimeMixing(config, layers, recompute, dropout=config.dropout, style=style)
            for _ in range(is_divided * config.num_layers)
        )
        self.final_norm: Any = None
        if config.final_norm:
            self.final_norm = layers.norm(width, epsilon=config.norm_epsilon)
        config.fix(
            self.projection,
            self.class_embedding,
            self.positions,
            self.time_positions,
            *list(self.times)[: config.layers_fixed],
            blocks=self.blocks,
        )

    def forward(self, spans: VideoSpans) -> Float[Tensor, "M E"]:
        """Vectors of all videos, each having seen itself alone; perhaps some more.

        As in the text encoder, linear layers run over the real rows, and those that keep shapes
        steady.
        """
        weight = self.projection.weight
        R = steady_rows(spans.num_rows, like=weight, room=len(spans.patches))
        x = self.projection(self.config.normalized(spans.patches[:R]).to(weight.dtype))
        x = x + self._positions(spans.places[:R], spans.grids[:R]).to(x.dtype)
        class_rows = 0
        if self.class_embedding is not None:
            class_rows, first = spans.num_spans, spans.places.new_zeros(1)
            class_row: Tensor = self.class_embedding(first)
            if self.positions is not None:
                class_row = class_row + self.positions(first)
            x = torch.cat([class_row.expand(class_rows, -1), x])
        x = self.dropout(x)
        attend = self._divided if len(self.times) else self._joint
        x = attend(x, spans, class_rows)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x.index_select(0, spans.vectors[: spans.steady_vectors(like=weight)])

    def _joint(self, x: Tensor, spans: VideoSpans, N: int) -> Tensor:
        grid = _grid_of(spans, 0, N, groups=spans.num_spans, longest=spans.longest_rows)
        bias = grid.no_bias(like=x)
        for block in self.blocks:
            x = run_block(block, x, grid, bias)
        return x

    def _divided(self, x: Tensor, spans: VideoSpans, N: int) -> Tensor:
        T = self.config.times
        time = _grid_of(spans, 1, 0, groups=spans.num_places, longest=T)
        frame = _grid_of(spans, 2, N * T, groups=spans.num_spans * T, longest=spans.longest_frame)
        frames = Frames(grid=frame, class_rows=N, times=T)
        time_bias, frame_bias = time.no_bias(like=x), frame.no_bias(like=x)
        for mixing, block in zip(self.times, self.blocks, strict=True):
            # The class row has no time.
            mixed = run_block(mixing, x[N:], time, time_bias)
            x = torch.cat([x[:N], mixed]) if N else mixed
            x = run_block(block, x, frames, frame_bias)
        return x

    def _positions(self, places: Tensor, grids: Tensor) -> Float[Tensor, "R E"]:
        time, row, column = places.unbind(dim=1)
        if self.time_positions is None:
            number = (time * grids[:, 0] + row) * grids[:, 1] + column
            return self.waves.index_select(0, number)
        times, rows, columns = self.config.table_sizes
        place = nearest(row, grids[:, 0], table=rows) * columns
        place = place + nearest(column, grids[:, 1], table=columns) + self.config.class_rows
        when = nearest(time, torch.full_like(time, self.config.times), table=times)
        return self.positions(place) + self.time_positions(when)


def _grid_of(
    spans: VideoSpans, which: int, class_rows: int, *, groups: int, longest: int
) -> SpanGrid:
    """One of the grids: class rows, as many as there are groups or none, and the tubes."""
    cells = spans.cells[: spans.num_rows, which]
    if class_rows:
        first = torch.arange(class_rows, device=cells.device) * longest
        cells = torch.cat([first, cells])
    return SpanGrid.fitted(cells, groups, longest)


def interleaved_sinusoids(num_positions: int, width: int) -> Float[Tensor, "n E"]:
    """Positions by sines in even and cosines in odd channels, as VideoMAE has them."""
    channel = torch.arange(width, dtype=torch.float64)
    waves = 10_000.0 ** (2 * (channel // 2) / width)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] / waves
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()
