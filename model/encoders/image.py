"""The image encoder: patches of each picture see each other, all pictures packed together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.attention import SpanGrid
from model.batch import PackedSpans
from model.block import run_block
from model.config import Dropout
from model.encoders.grid import Grid, weights_between
from model.encoders.multiway import PrefixEmbedding, PrefixTextConfig
from model.encoders.patch_bias import PatchBias
from model.encoders.patches import PICTURE_KEYS, PatchEncoderKind, Side
from model.encoders.protocol import SpanLoad, Stack
from model.layers import NORM_EPSILON, Layers, normal
from model.recompute import Recompute
from model.steady import steady_rows
from model.style import Style


class ImageEncoderConfig(PatchEncoderKind):
    """Shape of the image encoder, the pictures it reads, and what of it trains."""

    kind: Literal["image"]
    table: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Rows and columns of the learned positions, which other grids read between (bicubic).
    Default: the grid of `size`, or the largest square of `max_patches`."""
    class_token: Literal["none", "dropped", "kept"] = "none"
    """Whether a learned row stands before the patches, and its vector is the first of a picture's
    or `dropped`."""
    dropout: Dropout = 0.0
    """Share of the embedding and of each residual branch dropped in training."""
    norm: Literal["pre", "post", "deepnorm"] = "pre"
    """`pre` in ViT and its family; DeepNorm as in the text encoder."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = NORM_EPSILON
    """What is added to the variance that norms divide by."""
    final_norm: bool = True
    """Whether a norm stands behind the blocks."""
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    """`gelu_tanh` in SigLIP, `quick_gelu` in CLIP."""
    embedding_norm: bool = False
    """Whether a norm stands before the blocks (CLIP)."""
    layer_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """What learned factors of each branch's channels start from (BEiT); default: there are none."""
    positions: bool = True
    """Whether there are learned positions; not in most of BEiT."""
    relative_positions: Literal["none", "shared", "each"] = "none"
    """Whether scores have a bias by the way from patch to patch, `shared` by all layers or `each`
    with its own (BEiT). Grids other than the table's read between it (bilinear)."""
    text: PrefixTextConfig | None = None
    """Text that is read behind a picture, as one span with it (VLMo's multiway blocks); which, says
    `spans.image.prefix`. Default: none."""

    @property
    def table_grid(self) -> Grid:
        """Rows and columns of the learned positions."""
        if self.table is not None:
            return self.table[0], self.table[1]
        return super().table_grid

    @property
    def class_rows(self) -> int:
        """Rows of a picture before its patches."""
        return int(self.class_token != "none")

    @property
    def dropped_rows(self) -> int:
        """Rows of a picture that give none of its vectors."""
        return int(self.class_token == "dropped")

    def item_vectors(self, size: Sequence[int]) -> int:
        """Vectors of a picture; `size` is its height and width in pixels."""
        rows, columns = self.grid(size)
        return rows * columns + int(self.class_token == "kept")

    @property
    def longest_span(self) -> int:
        """Vectors of the largest picture."""
        rows, columns = self.largest_grid
        return rows * columns + int(self.class_token == "kept")

    def architecture(self, *, vocabulary: int) -> dict[str, Any]:
        """All but what only training asks for, and which pictures are read."""
        left_out = {"dropout", "init_from", "trainable_layers"}
        shape = self.model_dump(exclude=left_out | PICTURE_KEYS) | {
            "table": list(self.table_grid),
            "class_token": self.class_token != "none",
        }
        return shape if self.text is None else shape | {"vocabulary": vocabulary}

    def build(self, *, vocabulary: int, layers: Layers, recompute: Recompute) -> "ImageEncoder":
        """The encoder; the vocabulary is that of text behind pictures."""
        return ImageEncoder(self, vocabulary, layers, recompute)

    def stacks(self, load: SpanLoad) -> tuple[Stack, ...]:
        """The blocks that are fixed, and those that train."""
        longest_rows = load.longest + self.dropped_rows
        bias_trains = self.relative_positions == "each" or (
            self.relative_positions == "shared" and self.layers_fixed == 0
        )
        return tuple(
            Stack(
                num_blocks=num_blocks,
                width=self.width,
                hidden=self.feed_forward,
                heads=self.heads,
                rows=load.vectors + load.spans * self.dropped_rows,
                cells=load.spans * longest_rows,
                pairs=load.spans * longest_rows**2,
                dropout=self.dropout > 0,
                trains=trains,
                bias_trains=bias_trains and trains,
            )
            for num_blocks, trains in ((self.layers_fixed, False), (self.layers_in_training, True))
        )

    def faults(
        self, path: str, *, vocabulary: int, longest: int, is_supplied: bool
    ) -> Iterator[str]:
        """Sizes that do not fit each other; layers left random."""
        yield from self.block_faults(path, is_supplied=is_supplied)
        yield from self.picture_faults(path)
        if self.relative_positions != "none" and self.size is None:
            yield (
                f"{path}.relative_positions: {self.relative_positions} is for pictures of one "
                f"size, as {path}.max_patches would ask for a bias of each: choose none, or set "
                f"{path}.size"
            )
        if self.text is None:
            return
        if self.relative_positions != "none":
            yield (
                f"{path}.relative_positions: {self.relative_positions} tells the way from patch to "
                f"patch, and text has none: choose none, or leave {path}.text out"
            )
        if self.text.shared_layers > self.num_layers:
            yield (
                f"{path}.text.shared_layers: {self.text.shared_layers} exceeds "
                f"{path}.num_layers ({self.num_layers}): lower it"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSpans(PackedSpans):
    """Pictures, packed row after row: the class row of each, if there is one, then its patches.

    Behind the rows of all pictures come those of the text that is read with them, if any is. The
    first `num_rows` rows are real, which are those of pictures and of text together.

    Attributes:
        patches: [K, 3 P P] red, then green, then blue of each patch's pixels, row after row, from 0
            to 255; zeros in class rows.
        places: [K, 2] row and column of each patch in its picture's grid; -1 for class rows.
        grids: [K, 2] rows and columns of that grid.
        cells: [R] place of each row in the padded [N, L] grid that attention works on.
        vectors: [M] rows that give a vector.
        num_rows: real rows.
        num_spans: N, pictures in the grid.
        longest_rows: L, rows of the largest picture, its text included.
        tokens: [T] of the text behind pictures, T at least 1; None where the encoder reads none.
        positions: [T] place of each token behind its picture, counted from 0.
        num_tokens: real ones.
    """

    patches: Tensor
    places: Int64[Tensor, "K 2"]
    grids: Int64[Tensor, "K 2"]
    cells: Int64[Tensor, "R"]
    vectors: Int64[Tensor, "M"]
    num_rows: int
    num_spans: int
    longest_rows: int
    tokens: Int64[Tensor, "T"] | None = None
    positions: Int64[Tensor, "T"] | None = None
    num_tokens: int = 0


class ImageEncoder(nn.Module):
    """One linear layer over each patch, learned positions, blocks.

    Source: ViT (2010.11929) §3.1.
    """

    def __init__(
        self,
        config: ImageEncoderConfig,
        vocabulary: int,
        layers: Layers,
        recompute: Recompute = "none",
    ):
        super().__init__()
        self.config = config
        width, channels = config.width, 3 * config.patch_pixels**2
        rows, columns = config.table_grid
        self.projection: Any = layers.linear(channels, width, init=normal(0.02))
        self.class_embedding: Any = None
        if config.class_rows:
            self.class_embedding = layers.table(1, width, init=normal(0.02))
        self.positions: Any = None
        if config.positions:
            places = config.class_rows + rows * columns
            self.positions = layers.table(places, width, init=normal(0.02))
        self.embedding_norm: Any = None
        if config.embedding_norm:
            self.embedding_norm = layers.norm(width, epsilon=config.norm_epsilon)
        self.dropout = layers.dropout(config.dropout)
        num_biases = {"none": 0, "shared": 1, "each": config.num_layers}
        self.patch_biases = nn.ModuleList(
            PatchBias(
                table=config.table_grid,
                grid=config.fixed_grid or config.table_grid,
                has_class=bool(config.class_rows),
                heads=config.heads,
                layers=layers,
            )
            for _ in range(num_biases[config.relative_positions])
        )
        style = Style(
            norm=config.norm,
            norm_epsilon=config.norm_epsilon,
            activation=config.activation,
            layer_scale=config.layer_scale,
        )
        self.text: Any = None
        own_layers = 0
        if config.text is not None:
            self.text = PrefixEmbedding(config.text, width, vocabulary, layers)
            own_layers = config.num_layers - config.text.shared_layers
        self.blocks = config.blocks(
            layers, recompute, dropout=config.dropout, style=style, two_kinds=own_layers
        )
        self.final_norm: Any = None
        if config.final_norm:
            self.final_norm = layers.norm(width, epsilon=config.norm_epsilon)
        before = (self.projection, self.class_embedding, self.positions, self.text)
        before = (*before, self.embedding_norm)
        # A bias that all layers share is fixed with the first of them.
        biases = list(self.patch_biases)[: config.layers_fixed]
        config.fix(*before, *biases, blocks=self.blocks)

    def forward(self, spans: ImageSpans) -> Float[Tensor, "M E"]:
        """Vectors of all pictures, each having seen itself alone; perhaps some more.

        As in the text encoder, linear layers run over the real rows, and those that keep shapes
        steady.
        """
        real, first = spans.num_rows, spans.num_rows - spans.num_tokens
        grid = SpanGrid.fitted(
            spans.cells[:real], spans.num_spans, spans.longest_rows, first_rows=first
        )
        weight = self.projection.weight
        R = steady_rows(first, like=weight, room=len(spans.patches))
        x = self._of_patches(spans, R)
        if self.text is not None:
            x = self._with_text(x[:first], spans)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.dropout(x)
        bias = grid.no_bias(like=x)
        for i, block in enumerate(self.blocks):
            if i < len(self.patch_biases):
                relative = self.patch_biases[i](grid.longest_rows)
                bias = relative.masked_fill(grid.padding(), float("-inf"))
            x = run_block(block, x, grid, bias)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x.index_select(0, spans.vectors[: spans.steady_vectors(like=weight)])

    def _of_patches(self, spans: ImageSpans, R: int) -> Float[Tensor, "R E"]:
        """The first so many rows of pictures before the blocks."""
        weight = self.projection.weight
        x = self.projection(self.config.normalized(spans.patches[:R]).to(weight.dtype))
        places, grids = spans.places[:R], spans.grids[:R]
        if self.class_embedding is not None:
            is_class = (places[:, 0] < 0)[:, None]
            x = torch.where(is_class, self.class_embedding(places.new_zeros(1)), x)
        return x if self.positions is None else x + self._positions(places, grids)

    def _with_text(self, x: Tensor, spans: ImageSpans) -> Float[Tensor, "R E"]:
        """Rows of pictures, those of text, and what keeps shapes steady.

        There is a row of text at least, so that every rank uses every weight.
        """
        assert spans.tokens is not None, "packed for this encoder"
        assert spans.positions is not None, "as are their places"
        T = max(1, spans.num_tokens)
        text = self.text(spans.tokens[:T], spans.positions[:T])
        rows = len(x) + T
        more = steady_rows(rows, like=x, room=len(spans.patches) + len(spans.tokens)) - rows
        return F.pad(torch.cat([x, text.to(x.dtype)]), (0, 0, 0, more))

    def _positions(self, places: Tensor, grids: Tensor) -> Float[Tensor, "R E"]:
        """The learned positions of rows, between those of the table where grids differ from its."""
        rows, columns = self.config.table_grid
        class_rows = self.config.class_rows
        is_class = places[:, 0] < 0
        if self.config.fixed_grid == (rows, columns):
            place = places[:, 0] * columns + places[:, 1] + class_rows
            return self.positions(place.masked_fill(is_class, 0))
        weights = [
            weights_between(places[:, dim], grids[:, dim], table=size)
            for dim, size in enumerate((rows, columns))
        ]
        weights = torch.einsum("ri,rj->rij", *weights).flatten(1)
        if class_rows:
            weights = weights.masked_fill(is_class[:, None], 0)
            weights = torch.cat([is_class[:, None].to(weights.dtype), weights], dim=1)
        table = self.positions(torch.arange(class_rows + rows * columns, device=places.device))
        return weights.to(table.dtype) @ table
