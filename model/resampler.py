"""The query resampler: as many slots for each item, whatever its size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from model.attention import Attention, SpanGrid
from model.backend import attend
from model.batch import PackedSpans
from model.block import Block, run_block
from model.config import Heads, HiddenWidth
from model.connector import ConnectorKind, Product, last_layer
from model.encoders.protocol import EncoderKind, SpanLoad
from model.layers import Initializer, Layers, normal
from model.recompute import Recompute, run
from model.style import USUAL_STYLE, Style


class ResamplerConnectorConfig(ConnectorKind):
    """Learned queries that look at all vectors of an item, and at each other, in their width.

    Source: Flamingo (2204.14198) §3.1.1 and A.1.1; one layer of 64 queries without a feed-forward
    net is the resampler of Kosmos-1.
    """

    kind: Literal["resampler"]
    queries: Annotated[int, Field(ge=1, le=2**12)] = 64
    """Decoder slots that every item takes."""
    num_layers: Annotated[int, Field(ge=1, le=2**7)] = 2
    """Flamingo has 6."""
    heads: Heads | None = None
    """Default: as many as the encoder has."""
    feed_forward: HiddenWidth | None = None
    """Default: four times the encoder's width."""

    @property
    def item_slots(self) -> int | None:
        """One for each query."""
        return self.queries

    def heads_of(self, encoder: EncoderKind) -> int:
        """A."""
        return self.heads or encoder.heads

    def hidden_of(self, encoder: EncoderKind) -> int:
        """F."""
        return self.feed_forward or 4 * encoder.width

    def build(
        self, encoder: EncoderKind, H: int, *, layers: Layers, recompute: Recompute
    ) -> "Resampler":
        """The queries, and blocks like those of encoders."""
        return Resampler(self, encoder, H, layers, recompute)

    def rows(self, load: SpanLoad) -> float:
        """Queries of all items."""
        return load.spans * self.queries

    def products(self, encoder: EncoderKind, H: int, load: SpanLoad) -> Sequence[Product]:
        """Those of each layer, and what gives the decoder's width."""
        E, hidden, rows = encoder.width, self.hidden_of(encoder), self.rows(load)
        layer = [
            Product(rows, E, E, "outer"),
            Product(rows + load.vectors, E, 2 * E, "outer"),
            Product(rows, E, E, "inner"),
            Product(rows, E, hidden, "outer"),
            Product(rows, hidden, E, "inner"),
        ]
        return [*self.num_layers * layer, Product(rows, E, H)]

    def pairs(self, load: SpanLoad) -> float:
        """Each query with as many vectors as the longest item has, and with the item's queries."""
        return self.num_layers * self.rows(load) * (load.longest + self.queries)

    def tensor_sizes(self, encoder: EncoderKind) -> dict[str, int]:
        """Its heads and its feed-forward net."""
        return {"heads": self.heads_of(encoder), "feed_forward": self.hidden_of(encoder)}


@dataclass(frozen=True)
class Looked:
    """What queries look at.

    Attributes:
        items: where vectors lie in the padded grid of items.
        bias: [N, 1, Q, Q + L] -inf on padding, None where there is none.
        queries: Q.
    """

    items: SpanGrid
    bias: Tensor | None
    queries: int


class ResamplingAttention(Attention):
    """Attention of an item's queries to its vectors and to themselves, of all items at once.

    Vectors are packed without padding; there is some in the grid of keys and values alone.
    """

    shapes_vary: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        layers: Layers,
        query_key_init: Initializer,
        value_init: Initializer,
        out_init: Initializer,
        style: Style = USUAL_STYLE,
        recompute: Recompute = "none",
    ):
        super().__init__(
            width,
            heads,
            layers=layers,
            query_key_init=query_key_init,
            value_init=value_init,
            out_init=out_init,
            style=style,
            recompute=recompute,
        )
        inner = heads * self.head_width
        self.vectors_norm = layers.norm(width, kind=style.norm_layer, epsilon=style.norm_epsilon)
        self.query = layers.column(width, inner, init=query_key_init)
        # Its rows lie head by head, [A, 2, D]: so ranks that split the heads hold whole ones.
        self.key_value = layers.column(width, 2 * inner, init=query_key_init)
        self.out = layers.row(inner, width, init=out_init)

    def forward(
        self, x: Float[Tensor, "K E"], vectors: Float[Tensor, "M E"], looked: Looked
    ) -> Float[Tensor, "K E"]:
        """Attend; `x` are the normed queries of all items, `vectors` those of the encoder."""
        rows = torch.cat([self.vectors_norm(vectors), x])
        mixed = run(self._mix, self.query(x), self.key_value(rows), looked, again=self.again)
        return self.out(mixed)

    def _mix(self, query: Tensor, key_value: Tensor, looked: Looked) -> Tensor:
        items, Q, D = looked.items, looked.queries, self.head_width
        N, K = items.num_spans, len(query)
        # Off the CPU the grid has items that nobody has.
        missing = (0, 0, 0, N * Q - K)
        q_NQAD = F.pad(query, missing).view(N, Q, -1, D)
        own = F.pad(key_value[-K:], missing).view(N, Q, -1, 2, D)
        seen = items.scatter(key_value[: items.num_rows].view(items.num_rows, -1, 2, D))
        k_NLAD, v_NLAD = torch.cat([own, seen], dim=1).unbind(dim=3)
        mixed = attend(
            q_NQAD.transpose(1, 2),
            k_NLAD.transpose(1, 2),
            v_NLAD.transpose(1, 2),
            backend=self.backend,
            bias=looked.bias,
            steady=False,
        )
        return mixed.transpose(1, 2).reshape(N * Q, -1)[:K]


class Resampler(nn.Module):
    """Blocks of queries around `ResamplingAttention`, a norm, and a linear layer: [M, E] -> [K, H].

    Args:
        config: its shape.
        encoder: what stands before it.
        H: width of the decoder.
        layers: where weights come from.
        recompute: activations that are computed again in the backward.
    """

    def __init__(
        self,
        config: ResamplerConnectorConfig,
        encoder: EncoderKind,
        H: int,
        layers: Layers,
        recompute: Recompute = "none",
    ):
        super().__init__()
        E = encoder.width
        self.num_queries = config.queries
        self.queries: Any = layers.table(config.queries, E, init=normal(0.02))
        self.blocks = nn.ModuleList(
            Block(
                width=E,
                heads=config.heads_of(encoder),
                hidden=config.hidden_of(encoder),
                attention=ResamplingAttention,
                layers=layers,
                style=Style(norm="pre"),
                depth=config.num_layers,
                recompute=recompute,
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = layers.norm(E)
        self.projection = last_layer(E, H, layers)

    def forward(self, vectors: Float[Tensor, "M E"], spans: PackedSpans) -> Float[Tensor, "K H"]:
        """What decoder slots get: Q vectors of each item in turn, each item read alone."""
        assert spans.item_cells is not None, "packed for a connector that reads whole items"
        cells = spans.item_cells[: spans.num_vectors]
        items = SpanGrid.fitted(cells, spans.num_items, spans.longest_item)
        Q = self.num_queries
        bias = None
        if not items.is_full:
            padding = F.pad(items.padding(), (Q, 0))
            bias = vectors.new_zeros(1).masked_fill(padding, float("-inf")).expand(-1, 1, Q, -1)
        looked = Looked(items, bias, Q)
        numbers = torch.arange(Q, device=vectors.device).repeat(spans.num_items)
        x = self.queries(numbers)
        for block in self.blocks:
            x = run_block(block, x, vectors, looked)
        return self.projection(self.final_norm(x))
