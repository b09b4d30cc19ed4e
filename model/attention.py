"""Self-attention: causal over decoder slots, bidirectional over packed spans."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from model.layers import Initializer, Layers


def query_key_value(*, heads: int, query_key: Initializer, value: Initializer) -> Initializer:
    """Fill a fused projection [A*3*D, H], head by head, values with an initialiser of their own."""

    def fill(weight: Tensor, generator: Generator) -> None:
        width = weight.shape[1]
        parts = weight.view(heads, 3, -1, width)
        whole = torch.empty(width, width)
        for part, init in enumerate((query_key, query_key, value)):
            init(whole, generator)
            parts[:, part] = whole.view(heads, -1, width)

    return fill


@dataclass
class KeyValueCache:
    """Keys and values of one layer's past slots, each [B, A, capacity, D]."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, A, new, D] and return all keys and values so far."""
        stop = self.length + keys.shape[2]
        assert stop <= self.keys.shape[2], "the cache was built too short"
        self.keys[:, :, self.length : stop] = keys
        self.values[:, :, self.length : stop] = values
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]


class SelfAttention(nn.Module):
    """The projections that both kinds of attention share.

    Args:
        width: H of a decoder, E of an encoder.
        heads: A.
        layers: where weights come from.
        qkv_init: fills the fused projection [A*3*D, width].
        out_init: fills the output projection.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        layers: Layers,
        qkv_init: Initializer,
        out_init: Initializer,
    ):
        super().__init__()
        self.heads = heads
        self.qkv = layers.column(width, 3 * width, init=qkv_init)
        self.out = layers.row(width, width, init=out_init)


class CausalSelfAttention(SelfAttention):
    """Plain lower-triangular attention over all slots, span slots included.

    Source: MetaLM §2.2.
    """

    def forward(
        self, x: Float[Tensor, "B S H"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "B S H"]:
        """Attend; with a cache, `x` holds the newest slots only."""
        B, S, _ = x.shape
        qkv = self.qkv(x).view(B, S, self.heads, 3, -1)
        q_BASD, k_BASD, v_BASD = (part.transpose(1, 2) for part in qkv.unbind(dim=3))
        causal = True
        if cache is not None:
            past = cache.length
            k_BASD, v_BASD = cache.extend(k_BASD, v_BASD)
            assert past == 0 or S == 1, "after the prompt, slots are added one by one"
            causal = past == 0
        mixed = F.scaled_dot_product_attention(q_BASD, k_BASD, v_BASD, is_causal=causal)
        return self.out(mixed.transpose(1, 2).reshape(B, S, -1))


@dataclass(frozen=True)
class SpanGrid:
    """Where packed rows lie in the padded grid that attention works on.

    Attributes:
        cells: [R] place of each row in the flattened [N, L] grid.
        num_spans: N.
        longest_rows: L.
    """

    cells: Int64[Tensor, "R"]
    num_spans: int
    longest_rows: int

    def scatter(self, rows: Tensor) -> Tensor:
        """Lay rows [R, ...] out as [N, L, ...], zeros where a span is shorter."""
        grid = rows.new_zeros(self.num_spans * self.longest_rows, *rows.shape[1:])
        grid = grid.index_copy(0, self.cells, rows)
        return grid.view(self.num_spans, self.longest_rows, *rows.shape[1:])

    def gather(self, grid: Tensor) -> Tensor:
        """Take the real rows [R, ...] back out of [N, L, ...]."""
        return grid.reshape(-1, *grid.shape[2:]).index_select(0, self.cells)

    def padding(self) -> Tensor:
        """[N, 1, 1, L] True where a key is padding."""
        empty = torch.ones(self.num_spans * self.longest_rows, dtype=torch.bool)
        empty = empty.to(self.cells.device).index_fill(0, self.cells, False)
        return empty.view(self.num_spans, 1, 1, self.longest_rows)


class SpanSelfAttention(SelfAttention):
    """Bidirectional attention inside each span, over rows that are packed without padding.

    The projections see real rows only; padding exists between scatter and gather and nowhere else.
    """

    def forward(
        self,
        x: Float[Tensor, "R E"],
        grid: SpanGrid,
        bias: Float[Tensor, "N A L L"],
    ) -> Float[Tensor, "R E"]:
        """Attend within spans; `bias` is added to the scores (position bias, -inf on padding)."""
        qkv = self.qkv(x).view(x.shape[0], self.heads, 3, -1)
        q_NALD, k_NALD, v_NALD = (part.transpose(1, 2) for part in grid.scatter(qkv).unbind(dim=3))
        mixed = F.scaled_dot_product_attention(q_NALD, k_NALD, v_NALD, attn_mask=bias)
        return self.out(grid.gather(mixed.transpose(1, 2)).reshape(x.shape[0], -1))
