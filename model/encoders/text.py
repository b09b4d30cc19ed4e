"""The bidirectional text encoder: reads each span alone, all spans packed together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.attention import GRID_ROWS_MULTIPLE, SpanGrid
from model.batch import PackedSpans
from model.block import run_block
from model.config import Dropout, Tokens, Width
from model.encoders.protocol import EncoderKind, SpanLoad, Stack
from model.layers import NORM_EPSILON, Layers, normal
from model.recompute import Recompute
from model.steady import steady_rows
from model.style import Style

NUM_BUCKETS = 32
MAX_DISTANCE = 128


class TextEncoderConfig(EncoderKind):
    """Shape of the text encoder, and what of it trains."""

    kind: Literal["text"] = "text"
    max_tokens: Annotated[Tokens, Field(ge=2)]
    """Longest span, its start token included."""
    dropout: Dropout = 0.1
    """Share of the embedding and of each residual branch dropped in training."""
    start_token: Annotated[int, Field(ge=0, lt=2**24)] = 0
    """Token that opens each span; its output is dropped. `<s>` of our tokenizers."""
    norm: Literal["deepnorm", "post"] = "deepnorm"
    """`deepnorm` as in the paper, or `post`: plain residuals (BERT and its family)."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = NORM_EPSILON
    """What is added to the variance that norms divide by."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    relative_positions: bool = True
    """Whether scores have a bias by distance besides the learned positions, as in the paper; not
    in BERT and its family."""
    embedding_width: Width | None = None
    """Of tokens and positions, where a linear layer widens them behind their norm (ELECTRA)."""

    @property
    def longest_span(self) -> int:
        """Tokens of the longest span, without its start token."""
        return self.max_tokens - 1

    def architecture(self, *, vocabulary: int) -> dict[str, Any]:
        """All but what only training asks for, and its tokens, which are the decoder's."""
        kept = self.model_dump(exclude={"dropout", "init_from", "trainable_layers"})
        return kept | {"vocabulary": vocabulary}

    def build(self, *, vocabulary: int, layers: Layers, recompute: Recompute) -> "TextEncoder":
        """The encoder, with a token embedding of its own."""
        return TextEncoder(self, vocabulary, layers, recompute)

    def stacks(self, load: SpanLoad) -> tuple[Stack, ...]:
        """The blocks that are fixed, and those that train; each span has a start row besides."""
        longest_rows = load.longest + 1
        return tuple(
            Stack(
                num_blocks=num_blocks,
                width=self.width,
                hidden=self.feed_forward,
                heads=self.heads,
                rows=load.vectors + load.spans,
                cells=load.spans * longest_rows,
                pairs=load.spans * longest_rows**2,
                dropout=self.dropout > 0,
                trains=trains,
                bias_trains=self.layers_fixed == 0 and self.relative_positions,
            )
            for num_blocks, trains in ((self.layers_fixed, False), (self.layers_in_training, True))
        )

    def faults(
        self, path: str, *, vocabulary: int, longest: int, is_supplied: bool
    ) -> Iterator[str]:
        """Sizes that do not fit each other, the vocabulary or the spans; layers left random."""
        yield from self.block_faults(path, is_supplied=is_supplied)
        if self.start_token >= vocabulary:
            yield (
                f"{path}.start_token: {self.start_token} is outside the vocabulary of {vocabulary}"
            )
        if longest > self.longest_span:
            yield (
                f"{path}.max_tokens: spans of {longest} tokens and a start token exceed "
                f"{path}.max_tokens ({self.max_tokens}): raise it, or choose shorter spans"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSpans(PackedSpans):
    """Text spans, packed row after row; each opens with a start token.

    The first `num_rows` rows are real.

    Attributes:
        tokens: [R] token of each row.
        positions: [R] position of each row inside its span, the start token being 0.
        cells: [R] place of each row in the padded [N, L] grid that attention works on.
        vectors: [M] rows that are span tokens, not starts.
        num_rows: real rows.
        num_spans: N, spans in the grid.
        longest_rows: L, rows of the longest span.
    """

    tokens: Int64[Tensor, "R"]
    positions: Int64[Tensor, "R"]
    cells: Int64[Tensor, "R"]
    vectors: Int64[Tensor, "M"]
    num_rows: int
    num_spans: int
    longest_rows: int


def distance_buckets(most_rows: int) -> Int64[Tensor, "P"]:
    """Bucket of each distance from a query row to a key row, from 1 - most_rows to most_rows - 1.

    Half of the buckets look forward; in each half, half are exact and the rest grow by logarithm
    up to `MAX_DISTANCE`.

    Source: T5 §2.1, with the usual 32 buckets and distance 128.
    """
    distance = torch.arange(1 - most_rows, most_rows)
    half = NUM_BUCKETS // 2
    exact = half // 2
    far = distance.abs()
    ratio = torch.log(far.clamp(min=exact).float() / exact) / math.log(MAX_DISTANCE / exact)
    logarithmic = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(far < exact, far, logarithmic) + half * (distance > 0).long()


def relative_buckets(buckets: Int64[Tensor, "P"], longest: int) -> Int64[Tensor, "L L"]:
    """Bucket of the distance from each query row to each key row, out of those of all distances."""
    middle = len(buckets) // 2
    near = buckets[middle - longest + 1 : middle + longest]
    # Query i reads from distance -i on: the last window is the first query's.
    return near.unfold(0, longest, 1).flip(0)


class TextEncoder(nn.Module):
    """Token and learned position embeddings, a T5 relative bias shared by all layers, blocks.

    Source: MetaLM §3.2.
    """

    buckets: Tensor

    def __init__(
        self,
        config: TextEncoderConfig,
        vocabulary: int,
        layers: Layers,
        recompute: Recompute = "none",
    ):
        super().__init__()
        self.config = config
        self.share = layers.share
        width = config.embedding_width or config.width
        self.embedding = layers.vocabulary(vocabulary, width, init=normal(0.02))
        self.positions: Any = layers.table(config.max_tokens, width, init=normal(0.02))
        self.embedding_norm = layers.norm(width, epsilon=config.norm_epsilon)
        self.dropout = layers.dropout(config.dropout)
        self.widening: Any = None
        if config.embedding_width is not None:
            self.widening = layers.linear(width, config.width, init=normal(0.02))
        self.relative_bias: Any = None
        if config.relative_positions:
            self.relative_bias = layers.table(NUM_BUCKETS, config.heads, init=normal(0.02))
        most_rows = config.max_tokens + GRID_ROWS_MULTIPLE - 1
        self.register_buffer("buckets", distance_buckets(most_rows), persistent=False)
        style = Style(
            norm=config.norm, norm_epsilon=config.norm_epsilon, activation=config.activation
        )
        self.blocks = config.blocks(layers, recompute, dropout=config.dropout, style=style)
        before = (self.embedding, self.positions, self.embedding_norm, self.widening)
        config.fix(*before, self.relative_bias, blocks=self.blocks)

    def forward(self, spans: TextSpans) -> Float[Tensor, "M E"]:
        """Vectors of all span tokens, each span having seen itself alone; perhaps some more.

        Linear layers run over the real rows only (`num_rows`, known to the host), and those that
        keep shapes steady. What such rows give goes nowhere.
        """
        real = spans.num_rows
        grid = SpanGrid.fitted(spans.cells[:real], spans.num_spans, spans.longest_rows)
        weight = self.positions.weight
        R = steady_rows(real, like=weight, room=len(spans.tokens))
        x = self.embedding(spans.tokens[:R]) + self.positions(spans.positions[:R])
        x = self.dropout(self.embedding_norm(x))
        if self.widening is not None:
            x = self.widening(x)
        bias = self._bias(grid)
        for block in self.blocks:
            x = run_block(block, x, grid, bias)
        return x.index_select(0, spans.vectors[: spans.steady_vectors(like=weight)])

    def _bias(self, grid: SpanGrid) -> Float[Tensor, "N A L L"] | None:
        if self.relative_bias is None:
            return grid.no_bias(like=self.positions.weight)
        buckets = relative_buckets(self.buckets, grid.longest_rows)
        bias_1ALL = self.share(self.relative_bias(buckets)).permute(2, 0, 1)[None]
        return bias_1ALL.masked_fill(grid.padding(), float("-inf"))
