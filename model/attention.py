"""Self-attention: causal over decoder slots, bidirectional over packed spans."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Generator, Tensor, nn

from model.backend import Backend, attend
from model.documents import attend_within
from model.layers import Initializer, Layers
from model.reading import Reading
from model.recompute import Recompute, run
from model.rope import turned
from model.style import USUAL_STYLE, Style


def query_key_value(
    *, heads: int, kv_heads: int, query_key: Initializer, value: Initializer
) -> Initializer:
    """Fill a fused projection, values with an initialiser of their own.

    Its rows lie group by group, [G, A/G + 2, D]: the queries of a group, its key, its value. So
    ranks that split the groups hold whole ones.
    """

    def fill(weight: Tensor, generator: Generator) -> None:
        width, shared = weight.shape[1], heads // kv_heads
        parts = weight.view(kv_heads, shared + 2, -1, width)
        places = (slice(0, shared), slice(shared, shared + 1), slice(shared + 1, shared + 2))
        for place, init in zip(places, (query_key, query_key, value), strict=True):
            part = parts[:, place]
            whole = torch.empty(part.numel() // width, width)
            init(whole, generator)
            part.copy_(whole.view(part.shape))

    return fill


class Attention(nn.Module):
    """What every attention has.

    Attributes:
        backend: what computes between the projections; the whole model's, which sets it.
        head_width: D.
        again: whether what lies between the projections is computed again in the backward.
        shapes_vary: whether it sees other numbers of rows in each microbatch.

    Args:
        width: H of a decoder, E of an encoder.
        heads: A.
        layers: where weights come from.
        query_key_init: fills what makes queries and keys.
        value_init: fills what makes values.
        out_init: fills the output projection.
        style: groups of heads, their width, biases.
        recompute: at `selective`, what lies between the projections is computed again in the
            backward instead of being kept.
    """

    shapes_vary: ClassVar[bool] = False
    out: nn.Module
    """The output projection."""

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
        super().__init__()
        self.head_width = style.head_width or width // heads
        self.again = recompute == "selective"
        self.backend: Backend = "auto"


class SelfAttention(Attention):
    """The projections that both kinds of attention of rows to each other share.

    Attributes:
        shared: A/G, heads that share their keys and values.

    Args:
        width: H of a decoder, E of an encoder.
        heads: A.
        layers: where weights come from.
        query_key_init: fills queries and keys of the fused projection [(A + 2 G) * D, width].
        value_init: fills its values.
        out_init: fills the output projection.
        style: groups of heads, their width, biases.
        recompute: see `Attention`.
    """

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
        kv_heads = style.kv_heads or heads
        self.shared = heads // kv_heads
        inner = heads * self.head_width
        fused = inner + 2 * inner // self.shared
        qkv_init = query_key_value(
            heads=heads, kv_heads=kv_heads, query_key=query_key_init, value=value_init
        )
        self.qkv = layers.column(width, fused, init=qkv_init, bias=style.biases != "none")
        self.out = layers.row(inner, width, init=out_init, bias=style.biases == "all")


class CausalSelfAttention(SelfAttention):
    """Plain lower-triangular attention over all slots, span slots included.

    Where documents are kept apart, over those of the same document only.

    Works on rows, sequence after sequence. A rank that holds some heads only, or some rows, sees
    all rows of its heads between the two projections.

    Source: MetaLM §2.2.
    """

    def forward(
        self,
        x: Float[Tensor, "R H"],
        num_sequences: int,
        documents: Int32[Tensor, "N"] | None = None,
        turns: Float[Tensor, "2 P S 1 D"] | None = None,
        reading: Reading | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "R H"]:
        """Attend; in a reading, `x` holds the newest slots only.

        Args:
            x: rows.
            num_sequences: B.
            documents: see `Batch.documents`; None where slots attend across them.
            turns: see `rotations`; None where positions do not turn heads.
            reading: what knows the slots before, when generating.
            layer: which of the decoder's this is, for the reading.
        """
        context = (num_sequences, documents, turns, reading, layer)
        mixed = run(self._mix, self.qkv(x), *context, again=self.again)
        return self.out(mixed)

    def _mix(
        self,
        qkv: Tensor,
        num_sequences: int,
        documents: Tensor | None,
        turns: Tensor | None,
        reading: Reading | None,
        layer: int,
    ) -> Tensor:
        B, D = num_sequences, self.head_width
        S = qkv.shape[0] // B
        is_plain = turns is None and self.shared == 1
        if documents is not None:
            # One tensor is what the kernels take, so heads that share a key have copies of it.
            parts = qkv if is_plain else torch.stack(self._spread(qkv, B, turns), dim=3)
            qkv_RA3D = parts.view(B * S, -1, 3, D)
            mixed = attend_within(qkv_RA3D, documents, most_rows=S, backend=self.backend)
            return mixed.view(B * S, -1)
        if is_plain:
            q_BASD, k_BASD, v_BASD = qkv.view(B, S, -1, 3, D).permute(3, 0, 2, 1, 4).unbind()
        else:
            q_BASD, k_BASD, v_BASD = (p.transpose(1, 2) for p in self._parts(qkv, B, turns))
        visible = None
        if reading is not None:
            k_BASD, v_BASD = reading.extend(layer, k_BASD, v_BASD)
            visible = None if reading.is_first else reading.visible
        if self.shared > 1:
            k_BASD, v_BASD = (
                part.repeat_interleave(self.shared, dim=1) for part in (k_BASD, v_BASD)
            )
        mixed = attend(
            q_BASD,
            k_BASD,
            v_BASD,
            backend=self.backend,
            bias=visible,
            causal=reading is None or reading.is_first,
            steady=reading is None,
        )
        return mixed.transpose(1, 2).reshape(B * S, -1)

    def _parts(self, qkv: Tensor, B: int, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, S, A, D], keys and values [B, S, G, D], turned by their positions."""
        groups = qkv.view(B, qkv.shape[0] // B, -1, self.shared + 2, self.head_width)
        query, key, value = groups.split([self.shared, 1, 1], dim=3)
        query, key, value = query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3)
        if turns is not None:
            query, key = turned(query, turns), turned(key, turns)
        return query, key, value

    def _spread(self, qkv: Tensor, B: int, turns: Tensor | None) -> tuple[Tensor, ...]:
        """Queries, keys and values, one of each a head."""
        query, *shared = self._parts(qkv, B, turns)
        return query, *(part.repeat_interleave(self.shared, dim=2) for part in shared)


GRID_ROWS_MULTIPLE = 16
"""Of a grid's rows off the CPU. The memory-efficient kernel computes tiles of 64 anyway, and copies
a bias in each layer unless its rows are aligned."""
GRID_SPANS_MULTIPLE = 8
"""Of a grid's spans off the CPU, so that there are few shapes. Their capacity would be one shape,
and nearly twice the work."""


@dataclass(frozen=True)
class SpanGrid:
    """Where packed rows lie in the padded grid that attention works on.

    Attributes:
        cells: [R] place of each row in the flattened [N, L] grid.
        num_spans: N.
        longest_rows: L.
        real_spans: those of N that have rows; None: not known.
        first_rows: rows before all others that are of another kind than these, and have a
            feed-forward net of their own; None where all are of one kind.
    """

    cells: Int64[Tensor, "R"]
    num_spans: int
    longest_rows: int
    real_spans: int | None = None
    first_rows: int | None = None

    @staticmethod
    def padded(num_spans: float, longest_rows: float) -> tuple[int, int]:
        """Spans and rows of the grid off the CPU."""
        rows, spans = longest_rows / GRID_ROWS_MULTIPLE, num_spans / GRID_SPANS_MULTIPLE
        return math.ceil(spans) * GRID_SPANS_MULTIPLE, math.ceil(rows) * GRID_ROWS_MULTIPLE

    @classmethod
    def fitted(
        cls,
        cells: Int64[Tensor, "R"],
        num_spans: int,
        longest_rows: int,
        *,
        first_rows: int | None = None,
    ) -> Self:
        """The grid that suits the device: as small as can be on CPUs, else of few shapes."""
        if not is_padded_on(cells.device):
            return cls(cells, num_spans, longest_rows, num_spans, first_rows)
        spans, rows = cls.padded(num_spans, longest_rows)
        before = cells.div(longest_rows, rounding_mode="floor")
        cells = cells + before * (rows - longest_rows)
        return cls(cells, spans, rows, num_spans, first_rows)

    @property
    def num_rows(self) -> int:
        """Rows that are laid out; there may be more behind them, which are not."""
        return len(self.cells)

    def scatter(self, rows: Tensor) -> Tensor:
        """Lay rows [R, ...] out as [N, L, ...], zeros where a span is shorter."""
        grid = rows.new_zeros(self.num_spans * self.longest_rows, *rows.shape[1:])
        grid = grid.index_copy(0, self.cells, rows)
        return grid.view(self.num_spans, self.longest_rows, *rows.shape[1:])

    def gather(self, grid: Tensor) -> Tensor:
        """Take the real rows [R, ...] back out of [N, L, ...]."""
        return grid.reshape(-1, *grid.shape[2:]).index_select(0, self.cells)

    @property
    def is_full(self) -> bool:
        """Whether all spans are as long as the longest one, so that no row is padding.

        Spans that are padding as a whole may be there; nobody reads what is computed of them.
        """
        spans = self.real_spans
        return spans is not None and self.num_rows == spans * self.longest_rows

    def no_bias(self, *, like: Tensor) -> Float[Tensor, "N A L L"] | None:
        """What is added to scores that have no bias: -inf on padding, where there is any."""
        if self.is_full:
            return None
        L, zeros = self.longest_rows, like.new_zeros(1)
        return zeros.masked_fill(self.padding(), float("-inf")).expand(-1, 1, L, L)

    def padding(self) -> Tensor:
        """[N, 1, 1, L] True where a key is padding; the first of a span never is.

        A span that is padding as a whole sees that one, so that nothing divides by zero.
        """
        shape = (self.num_spans * self.longest_rows,)
        empty = self.cells.new_ones(shape, dtype=torch.bool).index_fill_(0, self.cells, False)
        empty = empty.view(self.num_spans, 1, 1, self.longest_rows)
        empty[..., 0] = False
        return empty


def is_padded_on(device: torch.device) -> bool:
    """Whether grids there are larger than their spans ask for."""
    return device.type != "cpu"


class SpanSelfAttention(SelfAttention):
    """Bidirectional attention inside each span, over rows that are packed without padding.

    The projections see real rows only; padding exists between scatter and gather and nowhere else.
    """

    shapes_vary: ClassVar[bool] = True

    def forward(
        self,
        x: Float[Tensor, "R E"],
        grid: SpanGrid,
        bias: Float[Tensor, "N A L L"] | None,
    ) -> Float[Tensor, "R E"]:
        """Attend within spans; `bias` is added to the scores (position bias, -inf on padding).

        Without padding there may be none, which faster kernels take.
        """
        return self.out(run(self._mix, self.qkv(x), grid, bias, again=self.again))

    def _mix(self, qkv: Tensor, grid: SpanGrid, bias: Tensor | None) -> Tensor:
        R, real = qkv.shape[0], grid.num_rows
        parts = grid.scatter(qkv[:real].view(real, -1, 3, self.head_width)).unbind(dim=3)
        q_NALD, k_NALD, v_NALD = (part.transpose(1, 2) for part in parts)
        mixed = attend(q_NALD, k_NALD, v_NALD, backend=self.backend, bias=bias, steady=False)
        found = grid.gather(mixed.transpose(1, 2)).reshape(real, -1)
        return found if R == real else F.pad(found, (0, 0, 0, R - real))
