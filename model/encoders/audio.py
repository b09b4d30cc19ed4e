"""The audio encoder: rows of each sound see each other, all sounds packed together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.attention import SpanGrid
from model.batch import PackedSpans
from model.block import run_block
from model.config import Dropout
from model.encoders.fronts import (
    Blocks,
    LogMelConfig,
    PositionConvolution,
    WaveformConfig,
    sinusoids,
)
from model.encoders.protocol import ItemEncoderKind, SpanLoad, Stack
from model.layers import NORM_EPSILON, Layers
from model.recompute import Recompute
from model.steady import steady_rows
from model.style import Style

Seconds = Annotated[float, Field(gt=0, le=3600)]
Rate = Annotated[int, Field(ge=1000, le=192_000)]


class AudioEncoderConfig(ItemEncoderKind):
    """Shape of the audio encoder, the sounds it reads, and what of it trains."""

    kind: Literal["audio"]
    front: Annotated[LogMelConfig | WaveformConfig, Field(discriminator="kind")] = Field(
        default_factory=LogMelConfig
    )
    """From sound to rows: `log_mel` as in Whisper, with learned positions, or the convolutions of
    wav2vec 2.0 over the `waveform`, with positions by a convolution."""
    rate: Rate = 16_000
    """Samples a second that it reads; sounds at other rates are resampled."""
    max_seconds: Seconds = 30.0
    """Of the longest sound; a longer one is refused."""
    padded_seconds: Seconds | None = None
    """Silence follows every sound up to this, as Whisper was trained (30), and is read with it; it
    takes no slots. Default: sounds are read as they are."""
    table_rows: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Learned positions. Default: as many as the longest sound has rows."""
    dropout: Dropout = 0.0
    """Share of the embedding and of each residual branch dropped in training."""
    norm: Literal["pre", "post", "deepnorm"] = "pre"
    """`pre` in Whisper and large wav2vec 2.0 and HuBERT, `post` in their base models; DeepNorm as
    in the text encoder."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = NORM_EPSILON
    """What is added to the variance that norms divide by."""
    embedding_norm: bool = False
    """Whether a norm stands before the blocks (base wav2vec 2.0 and HuBERT)."""
    final_norm: bool = True
    """Whether a norm stands behind the blocks."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"

    def samples(self, size: Sequence[int]) -> int:
        """Samples of a sound at the encoder's rate; `size` is how many it has, and its own rate."""
        count, rate = size
        return -(-count * self.rate // rate)

    @property
    def most_samples(self) -> int:
        """Of the longest sound."""
        return max(1, round(self.max_seconds * self.rate))

    @property
    def padded_samples(self) -> int:
        """To which silence fills every sound; 0: it does not."""
        return 0 if self.padded_seconds is None else round(self.padded_seconds * self.rate)

    def rows(self, samples: int) -> int:
        """Rows of a sound, those of silence behind it included."""
        return self.front.num_rows(max(samples, self.padded_samples))

    def item_vectors(self, size: Sequence[int]) -> int:
        """Vectors of a sound; `size` is its samples, and how many of them a second has.

        Raises:
            ValueError: it is too long; the message is the end of a sentence.
        """
        samples = self.samples(size)
        if samples > self.most_samples:
            raise ValueError(
                f"has a sound of {size[0] / size[1]:.3f} seconds, and its encoder reads "
                f"{self.max_seconds:g} at most: raise max_seconds of the encoder, or leave the "
                "sound out"
            )
        return self.front.num_rows(samples)

    @property
    def longest_span(self) -> int:
        """Vectors of the longest sound."""
        return self.front.num_rows(self.most_samples)

    @property
    def longest_rows(self) -> int:
        """Rows of the longest sound."""
        return self.rows(self.most_samples)

    @property
    def positions(self) -> int:
        """Learned ones; 0 where a convolution tells them."""
        return 0 if self.front.kind == "waveform" else self.table_rows or self.longest_rows

    def architecture(self, *, vocabulary: int) -> dict[str, Any]:
        """All but what only training asks for, and how long sounds are."""
        left_out = {"dropout", "init_from", "trainable_layers"}
        sounds = {"max_seconds", "padded_seconds"}
        return self.model_dump(exclude=left_out | sounds) | {"table_rows": self.positions}

    def build(self, *, vocabulary: int, layers: Layers, recompute: Recompute) -> "AudioEncoder":
        """The encoder; the vocabulary is nothing to it."""
        return AudioEncoder(self, layers, recompute)

    def stacks(self, load: SpanLoad) -> tuple[Stack, ...]:
        """The blocks that are fixed, and those that train."""
        silence = self.front.num_rows(self.padded_samples) if self.padded_samples else 0
        longest = max(load.longest, silence)
        rows = max(load.vectors, load.spans * silence)
        return tuple(
            Stack(
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
            for num_blocks, trains in ((self.layers_fixed, False), (self.layers_in_training, True))
        )

    def faults(
        self, path: str, *, vocabulary: int, longest: int, is_supplied: bool
    ) -> Iterator[str]:
        """Sizes that do not fit each other; layers left random."""
        yield from self.block_faults(path, is_supplied=is_supplied)
        if 0 < self.padded_samples < self.most_samples:
            yield (
                f"{path}.padded_seconds: {self.padded_seconds:g} is less than {path}.max_seconds "
                f"({self.max_seconds:g}): raise it, or leave it out"
            )
        if 0 < self.positions < self.longest_rows:
            yield (
                f"{path}.table_rows: {self.positions} positions are fewer than the "
                f"{self.longest_rows} rows of the longest sound: raise it, or lower "
                f"{path}.max_seconds"
            )
        if isinstance(self.front, WaveformConfig):
            if self.table_rows is not None:
                yield (
                    f"{path}.table_rows: positions are told by a convolution, and there is no "
                    "table: leave it out"
                )
            if self.width % self.front.position_groups:
                yield (
                    f"{path}.front.position_groups: {self.front.position_groups} groups do not "
                    f"divide width {self.width}"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class AudioSpans(PackedSpans):
    """Sounds, packed block after block, and the rows that are made of the blocks.

    The first `num_blocks` blocks and the first `num_rows` rows are real.

    Attributes:
        blocks: [K, D] what the front reads: two log-mel frames, or samples.
        valid: [K] see `model.encoders.fronts.Blocks`.
        owners: [K] number of the sound that a block is of.
        rows: [R] block that each row is made of.
        positions: [R] place of each row in its sound.
        cells: [R] place of each row in the padded [N, L] grid that attention works on.
        vectors: [M] rows that give a vector: those of no silence behind a sound.
        num_blocks: real blocks.
        num_rows: real rows.
        num_spans: N, sounds in the grid.
        longest_rows: L, rows of the longest sound.
    """

    blocks: Float[Tensor, "K D"]
    valid: Int64[Tensor, "K"]
    owners: Int64[Tensor, "K"]
    rows: Int64[Tensor, "R"]
    positions: Int64[Tensor, "R"]
    cells: Int64[Tensor, "R"]
    vectors: Int64[Tensor, "M"]
    num_blocks: int
    num_rows: int
    num_spans: int
    longest_rows: int


class AudioEncoder(nn.Module):
    """A front, positions, blocks.

    Source: Whisper (2212.04356) §2.2, wav2vec 2.0 (2006.11477) §2.
    """

    def __init__(self, config: AudioEncoderConfig, layers: Layers, recompute: Recompute = "none"):
        super().__init__()
        self.config = config
        width, front = config.width, config.front
        self.front: Any = front.build(width, layers)
        self.positions: Any
        if isinstance(front, WaveformConfig):
            self.positions = PositionConvolution(
                width,
                kernel=front.position_kernel,
                groups=front.position_groups,
                device=layers.device,
            )
        else:
            self.positions = layers.table(config.positions, width, init=sinusoids)
        self.embedding_norm: Any = None
        if config.embedding_norm:
            self.embedding_norm = layers.norm(width, epsilon=config.norm_epsilon)
        self.dropout = layers.dropout(config.dropout)
        style = Style(
            norm=config.norm, norm_epsilon=config.norm_epsilon, activation=config.activation
        )
        self.blocks = config.blocks(layers, recompute, dropout=config.dropout, style=style)
        self.final_norm: Any = None
        if config.final_norm:
            self.final_norm = layers.norm(width, epsilon=config.norm_epsilon)
        config.fix(self.front, self.positions, self.embedding_norm, blocks=self.blocks)

    def forward(self, spans: AudioSpans) -> Float[Tensor, "M E"]:
        """Vectors of all sounds, each having heard itself alone; perhaps some more.

        As in the text encoder, linear layers run over the real rows, and those that keep shapes
        steady.
        """
        return self.mixed(self.rows(spans), spans)

    def rows(self, spans: AudioSpans) -> Float[Tensor, "R E"]:
        """What the front makes of the sounds; perhaps some more."""
        weight = self.front.convolutions[0].weight
        K = steady_rows(spans.num_blocks, like=weight, room=len(spans.blocks))
        x = self.front(
            Blocks(
                values=spans.blocks[:K].to(weight.dtype),
                valid=spans.valid[:K],
                owners=spans.owners[:K],
                num_sounds=spans.num_spans,
            )
        )
        R = steady_rows(spans.num_rows, like=weight, room=len(spans.rows))
        return x.index_select(0, spans.rows[:R])

    def mixed(self, x: Float[Tensor, "R E"], spans: AudioSpans) -> Float[Tensor, "M E"]:
        """Vectors of rows, of which some may have been masked."""
        real = spans.num_rows
        grid = SpanGrid.fitted(spans.cells[:real], spans.num_spans, spans.longest_rows)
        x = x + self._positions(x, spans.positions[: len(x)], grid)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.dropout(x)
        bias = grid.no_bias(like=x)
        for block in self.blocks:
            x = run_block(block, x, grid, bias)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x.index_select(0, spans.vectors[: spans.steady_vectors(like=x)])

    def _positions(self, x: Tensor, places: Tensor, grid: SpanGrid) -> Float[Tensor, "R E"]:
        if not isinstance(self.positions, PositionConvolution):
            return self.positions(places)
        real = grid.num_rows
        found = grid.gather(self.positions(grid.scatter(x[:real])))
        return found if len(x) == real else torch.cat([found, x[real:]])
