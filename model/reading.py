"""What is read of sequences from where they stand: the newest slots, behind a cache of all before.

A row of the cache begins at slot 0, however long the others are, and has its room behind it. So a
prompt has the positions and the plainly causal attention that it has alone: there is no padding
before it, and what lies behind a row is seen by none of its slots.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from model.batch import PackedSpans

GROWTH = 1.5
"""By which factor a cache grows, so that few slots are copied often."""


class Cache:
    """Keys and values of the slots that some rows have been read to, in each layer.

    Args:
        num_slots: room in each row at first; it grows as rows do.

    Attributes:
        lengths: slots of each row.
    """

    def __init__(self, num_slots: int = 0):
        self.lengths: list[int] = []
        self._num_slots = num_slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(
        self, index: int, like: Float[Tensor, "B A S D"], *, num_slots: int
    ) -> tuple[Float[Tensor, "B A T D"], Float[Tensor, "B A T D"]]:
        """Keys and values of a layer for all rows, with room for so many slots; to be written to.

        Args:
            index: of the layer.
            like: newest keys, whose rows, heads, type and device the cache has.
            num_slots: T at least.
        """
        rows, heads, _, width = like.shape
        pair = self._layers.get(index)
        if pair is None or pair[0].shape[0] < rows or pair[0].shape[2] < num_slots:
            room_rows, room_slots = rows, max(num_slots, self._num_slots)
            if pair is not None:
                had = pair[0].shape
                room_rows = max(had[0], rows if had[0] >= rows else int(rows * GROWTH))
                room_slots = max(had[2], int(num_slots * GROWTH) if had[2] < num_slots else 0)
            # Zeros: what attention multiplies by nothing must be finite.
            grown = (
                like.new_zeros(room_rows, heads, room_slots, width),
                like.new_zeros(room_rows, heads, room_slots, width),
            )
            if pair is not None:
                for new, old in zip(grown, pair, strict=True):
                    new[: old.shape[0], :, : old.shape[2]] = old
            pair = self._layers[index] = grown
        if pair[0].shape[0] == rows:
            return pair
        return pair[0][:rows], pair[1][:rows]

    def drop(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        last = len(self.lengths) - 1
        for keys, values in self._layers.values():
            if row != last:
                keys[row] = keys[last]
                values[row] = values[last]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one may be there several times."""
        if list(rows) == list(range(len(self.lengths))):
            return
        stop = max(self.lengths, default=0)
        for index, (keys, values) in self._layers.items():
            chosen = torch.tensor(rows, dtype=torch.int64, device=keys.device)
            fits = len(rows) <= keys.shape[0]
            pair: list[Tensor] = []
            for old in (keys, values):
                picked = old[:, :, :stop].index_select(0, chosen)
                new = old if fits else old.new_zeros(len(rows), *old.shape[1:])
                new[: len(rows), :, :stop] = picked
                pair.append(new)
            self._layers[index] = (pair[0], pair[1])
        self.lengths = [self.lengths[row] for row in rows]

    def join(self, other: "Cache") -> None:
        """Take the rows of another cache of the same model behind the own ones."""
        first, stop = len(self.lengths), max(other.lengths, default=0)
        rows = slice(first, first + len(other.lengths))
        for index, pair in other._layers.items():
            like = pair[0].new_empty(1).expand(rows.stop, pair[0].shape[1], 1, pair[0].shape[3])
            for own, theirs in zip(self.layer(index, like, num_slots=stop), pair, strict=True):
                own[rows, :, :stop] = theirs[: len(other.lengths), :, :stop]
        self.lengths += other.lengths


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """The newest slots of all rows of a cache.

    Attributes:
        tokens: [B, S] shorter rows are filled up behind, with any token.
        counts: slots of each row.
        cache: of what was read before; `done` adds these.
        spans: of these slots, packed for all of them.
        wanted: which of B*S slots the head is asked for, W of them.
        starts: slots of each row that were read before.
        adapters: name of the adapter that each row is computed with, None for the base alone; empty
            where nobody asks for one.
    """

    tokens: Int64[Tensor, "B S"]
    counts: tuple[int, ...]
    cache: Cache
    spans: Mapping[str, PackedSpans] | None = None
    wanted: tuple[int, ...]
    starts: tuple[int, ...]
    adapters: tuple[str | None, ...] = ()

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        cache: Cache,
        *,
        device: torch.device,
        spans: Mapping[str, PackedSpans] | None = None,
        wants_all: bool = False,
        adapters: Sequence[str | None] = (),
    ) -> "Reading":
        """What is new of each row.

        Args:
            rows: newest tokens of each, at least one.
            cache: of what was read before.
            device: where the model is.
            spans: as they lie in [B, S] where S is the longest row.
            wants_all: whether the head is asked for all slots, row after row; else for the last
                of each.
            adapters: one a row, or none at all.
        """
        counts = tuple(map(len, rows))
        S = max(counts)
        tokens = torch.tensor([[*row, *[0] * (S - len(row))] for row in rows], device=device)
        wanted = (
            index * S + slot
            for index, count in enumerate(counts)
            for slot in range(0 if wants_all else count - 1, count)
        )
        starts = tuple(cache.lengths) or (0,) * len(rows)
        assert len(starts) == len(rows), "a reading is of all rows"
        return cls(
            tokens=tokens,
            counts=counts,
            cache=cache,
            spans=spans,
            wanted=tuple(wanted),
            starts=starts,
            adapters=tuple(adapters) if any(adapters) else (),
        )

    def padded(self, multiple: int) -> "Reading":
        """The same, with slots behind its rows until each row has a multiple of so many."""
        S = self.tokens.shape[1]
        missing = -S % multiple
        if not missing:
            return self

        def moved(slots: Tensor) -> Tensor:
            return slots + slots.div(S, rounding_mode="floor") * missing

        spans = self.spans or {}
        return replace(
            self,
            tokens=torch.nn.functional.pad(self.tokens, (0, missing)),
            spans={kind: replace(part, slots=moved(part.slots)) for kind, part in spans.items()},
            wanted=tuple(slot + slot // S * missing for slot in self.wanted),
        )

    def done(self) -> None:
        """All layers have read these slots: they belong to what was read before."""
        self.cache.lengths = [
            start + count for start, count in zip(self.starts, self.counts, strict=True)
        ]

    @cached_property
    def positions(self) -> Int64[Tensor, "P S"]:
        """Place of each slot in its row, real or not; P is 1 where all rows begin at one slot."""
        S, device = self.tokens.shape[1], self.tokens.device
        if self._are_even:
            return torch.arange(self._start, self._start + S, device=device)[None]
        return torch.tensor(self.starts, device=device)[:, None] + torch.arange(S, device=device)

    @cached_property
    def visible(self) -> Bool[Tensor, "P 1 S T"] | None:
        """Which slots of its row each new slot sees; None where it sees all that there are."""
        S = self.tokens.shape[1]
        if S == 1 and self._are_even:
            return None
        places = torch.arange(self._start + S, device=self.tokens.device)
        return (places <= self.positions[:, :, None])[:, None]

    @cached_property
    def _start(self) -> int:
        """Where the row begins of which most was read."""
        return max(self.starts)

    @cached_property
    def _are_even(self) -> bool:
        """Whether all rows begin at one slot."""
        return len(set(self.starts)) == 1

    @cached_property
    def _places(self) -> tuple[Int64[Tensor, "B 1"], Int64[Tensor, "B S"]]:
        rows = torch.arange(len(self.counts), device=self.tokens.device)
        return rows[:, None], self.positions

    def extend(
        self, layer: int, keys: Float[Tensor, "B A S D"], values: Float[Tensor, "B A S D"]
    ) -> tuple[Float[Tensor, "B A T D"], Float[Tensor, "B A T D"]]:
        """Keep a layer's newest keys and values; all so far, those behind a row's end included."""
        # A few calls less for each layer are felt where one slot is read at a time.
        start, S = self._start, keys.shape[2]
        kept_keys, kept_values = self.cache.layer(layer, keys, num_slots=start + S)
        if self._are_even:
            kept_keys.narrow(2, start, S).copy_(keys)
            kept_values.narrow(2, start, S).copy_(values)
        else:
            rows, slots = self._places
            kept_keys[rows, :, slots] = keys.transpose(1, 2)
            kept_values[rows, :, slots] = values.transpose(1, 2)
        return kept_keys.narrow(2, 0, start + S), kept_values.narrow(2, 0, start + S)

    @cached_property
    def is_first(self) -> bool:
        """Whether nothing was read before."""
        return not self._start


Read = Callable[[Reading], Float[Tensor, "W V"]]
"""Reads the newest slots and gives the logits of those that are wanted, in fp32: a model in eval
mode, or all ranks that hold one."""
