"""The sequences of one source, by number, without end: which parts of documents each one holds.

A sequence is a pure function of (seed, source, number): no rank, worker or restart has a say in it.
Where documents are to fit, they are packed window by window of the global order; how many sequences
a window gives is known once it has been packed, so one far from the beginning is found by packing
all windows before it, or from an `Anchor` that a checkpoint brings.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from train.data.document import LENGTH_COLUMNS, MEDIA, SIZES, Kind
from train.data.order import GlobalOrder
from train.data.pack import PackedSequences, Room, SequenceShape, pack
from train.data.slots import num_vectors
from train.data.spans.places import runs
from train.data.store.shards import ShardStore
from train.errors import DataError

Ints = npt.NDArray[np.int64]

_SEQUENCES: Final = 2
_PARTS: Final = 3
_KEPT_WINDOWS: Final = 3
_MEASURED_WINDOWS: Final = 8
_BLOCK: Final = 256
"""Sequences of a stream that are planned at once."""
_KEPT_SHARDS: Final = 128


class PlannedSequence(NamedTuple):
    """One sequence, as it is planned.

    Attributes:
        epoch: how often its source was gone through before.
        number: of the sequence in its epoch, or of its place in the stream; seeds what is random
            in it.
        parts: [p, 3] document in the store, and the half-open range of its tokens that is taken.
        lengths: [p] tokens that each of these documents has, as recorded.
        cost: operations with which encoders train on its items, told from recorded sizes.
    """

    epoch: int
    number: int
    parts: Ints
    lengths: Ints
    cost: int = 0


class FittedSequences:
    """Sequences into which documents are laid so that they fit.

    Args:
        order: of the documents.
        store: that holds them.
        shape: of a sequence.

    Raises:
        DataError (from `sequence`): a document with stored spans of text does not fit; a shard's
            lengths cannot be read.
    """

    def __init__(self, order: GlobalOrder, store: ShardStore, *, shape: SequenceShape):
        self.order = order
        self._store = store
        self._shape = shape
        # Of each window from some one on: its first sequence, epoch, number, first of the epoch.
        self._starts: list[list[int]] = [[0, 0, 0, 0]]
        self._packed = lru_cache(_KEPT_WINDOWS)(self._pack)

    def sequence(self, number: int) -> PlannedSequence:
        """The sequence with this number."""
        first, epoch, window, first_of_epoch = self._window_of(number)
        packed = self._packed(epoch, window)
        return PlannedSequence(
            epoch=epoch,
            number=number - first_of_epoch,
            parts=packed.sequence(number - first),
            lengths=packed.recorded(number - first),
            cost=packed.cost(number - first),
        )

    def sequences_an_epoch(self, total_tokens: int) -> float:
        """Sequences that all documents make, told from the first windows where there are many.

        Args:
            total_tokens: of all documents, without their items.
        """
        windows = range(min(self.order.num_windows, _MEASURED_WINDOWS))
        packed = [self._packed(0, window) for window in windows]
        tokens = sum(each.text_tokens for each in packed)
        return sum(len(each) for each in packed) * total_tokens / max(1, tokens)

    def count_up_to(self, count: int) -> int:
        """Sequences of epoch 0, or `count` where there are more; packs no further than that."""
        self._starts = [[0, 0, 0, 0]]
        while self._starts[-1][1] == 0 and self._starts[-1][0] < count:
            self._extend()
        return min(count, self._starts[-1][0])

    def anchor(self, number: int) -> list[int]:
        """Where its window begins: first sequence, epoch, window, first sequence of the epoch."""
        return list(self._window_of(number))

    def start_at(self, anchor: list[int], *, number: int) -> None:
        """Know where one window begins, and with it all later ones.

        Args:
            anchor: what `anchor` gave.
            number: for this sequence.

        Raises:
            DataError: it is no anchor of it.
        """
        first, epoch, window, first_of_epoch = anchor
        if (
            not first_of_epoch <= first <= number
            or window >= self.order.num_windows
            or (window == 0 and first != first_of_epoch)
            or (first_of_epoch == 0) != (epoch == 0)
        ):
            raise DataError(f"the checkpoint's position in {self._store.root} is damaged: {anchor}")
        self._starts = [list(anchor)]

    def _window_of(self, number: int) -> list[int]:
        if number < self._starts[0][0]:
            self._starts = [[0, 0, 0, 0]]
        while number >= self._starts[-1][0]:
            self._extend()
        return self._starts[bisect_right(self._starts, number, key=lambda start: start[0]) - 1]

    def _extend(self) -> None:
        first, epoch, window, first_of_epoch = self._starts[-1]
        after = first + len(self._packed(epoch, window))
        if window + 1 < self.order.num_windows:
            self._starts.append([after, epoch, window + 1, first_of_epoch])
        else:
            self._starts.append([after, epoch + 1, 0, after])

    def _pack(self, epoch: int, window: int) -> PackedSequences:
        ids = self.order.window_ids(epoch, window)
        lengths, costs = self._measured_of(ids)
        items = {place: self._bounds(int(ids[place])) for place in self._too_large(ids, lengths)}
        packed = self._shuffled(pack(lengths, self._shape, items=items), epoch, window)
        found = self._costs(packed.parts, costs, items)
        packed.parts[:, 0] = ids[packed.parts[:, 0]]
        return replace(packed, text_tokens=self._text_tokens(lengths), costs=found)

    def _costs(self, parts: Ints, costs: Ints, items: Mapping[int, Ints]) -> Ints | None:
        """[P] of parts, told from those of whole documents; `items` are of those that are cut."""
        if not costs.any():
            return None
        found = costs[parts[:, 0]]
        for row in np.flatnonzero(np.isin(parts[:, 0], list(items))).tolist():
            place, begin, end = parts[row].tolist()
            found[row] = sum(
                _cost(self._shape.rooms[of_room], stop - start)
                for start, stop, of_room in items[place].tolist()
                if begin <= start and stop <= end
            )
        return found

    def _text_tokens(self, lengths: Ints) -> int:
        of_text = self._are_of_text
        in_items = lengths[:, 2::2][:, ~of_text]
        return int(lengths[:, 0].sum() - in_items.sum())

    @property
    def _are_of_text(self) -> npt.NDArray[np.bool_]:
        """Which rooms are for spans of text, whose tokens are a document's own."""
        return np.array([room.vectors is None for room in self._shape.rooms], dtype=np.bool_)

    def _too_large(self, ids: Ints, lengths: Ints) -> list[int]:
        """Documents with items that do not fit a sequence, by their place; they are to be cut.

        Raises:
            DataError: one has stored spans of text, which must not be cut: nobody recorded where.
        """
        shape = self._shape
        room = np.array([shape.slots - shape.opening, *shape.limits])
        too_large = lengths[:, 1:].any(axis=1) & (lengths > room).any(axis=1)
        of_text = np.repeat(self._are_of_text, 2)
        refused = too_large & lengths[:, 1:][:, of_text].any(axis=1)
        if refused.any():
            document = int(refused.argmax())
            have, *numbers = lengths[document].tolist()
            taken = zip(shape.rooms, numbers[::2], numbers[1::2], strict=True)
            told = ", ".join(
                f"{inside} of them in {spans} {_named(of)}" for of, spans, inside in taken if spans
            )
            limits = ", ".join(f"{of.slots} in {of.spans} {_named(of)}" for of in shape.rooms)
            raise DataError(
                f"document {ids[document]} of {self._store.root} has {have} slots, {told}, but a "
                f"sequence holds {room[0]}, {limits}: raise data.sequence_tokens or "
                "data.span_capacity, or leave it out when the corpus is built"
            )
        return np.flatnonzero(too_large).tolist()

    def _bounds(self, document: int) -> Ints:
        """[m, 3] range of slots and number of the room of each item of a document that is cut."""
        shards, places = self.order.locate(np.array([document]))
        items = self._store.items(int(shards[0]))
        items = items[items[:, 0] == places[0]]
        kinds = [room.kind for room in self._shape.rooms]
        bounds: list[tuple[int, int, int]] = []
        shift = 0
        for _, at, kind, *size in items.tolist():
            number = kinds.index(kind)
            vectors = self._shape.rooms[number].vectors
            assert vectors is not None, "items have no tokens"
            count = num_vectors(vectors, size[: len(SIZES[Kind(kind)])])
            bounds.append((at + shift, at + shift + count, number))
            shift += count
        return np.array(bounds, dtype=np.int64)

    def _measured_of(self, ids: Ints) -> tuple[Ints, Ints]:
        shards, places = self.order.locate(ids)
        lengths = np.empty((len(ids), 1 + len(self._shape.limits)), dtype=np.int64)
        costs = np.empty(len(ids), dtype=np.int64)
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            of_shard, cost_of_shard = self._measured(shard)
            lengths[mine], costs[mine] = of_shard[places[mine]], cost_of_shard[places[mine]]
        return lengths, costs

    def lengths(self, shard: int) -> Ints:
        """[n, 1 + limits] what packing counts of each document of a shard, see `pack`.

        Raises:
            DataError: they cannot be read.
        """
        return self._measured(shard)[0]

    def _measured(self, shard: int) -> tuple[Ints, Ints]:
        """The lengths of a shard's documents, and [n] what encoders train with on their items."""
        stored = self._store.lengths(shard)
        costs = np.zeros(len(stored), dtype=np.int64)
        found = np.zeros((len(stored), 1 + len(self._shape.limits)), dtype=np.int64)
        found[:, 0] = stored[:, 0]
        for number, room in enumerate(self._shape.rooms):
            columns = found[:, 1 + 2 * number : 3 + 2 * number]
            if room.vectors is None:
                columns[:] = stored[:, 1:3]
                continue
            items = self._store.items(shard)
            items = items[items[:, 2] == room.kind]
            documents, sizes = items[:, 0], items[:, 3 : 3 + len(SIZES[room.kind])]
            # Pictures of a corpus are often of few sizes.
            sizes, which = np.unique(sizes, axis=0, return_inverse=True)
            which = which.reshape(-1)
            vectors = np.empty(len(sizes), dtype=np.int64)
            for row, size in enumerate(sizes.tolist()):
                try:
                    vectors[row] = num_vectors(room.vectors, size)
                except ValueError as error:
                    before = sum(self._store.shard_sizes[:shard])
                    document = before + int(documents[which == row][0])
                    raise DataError(f"document {document} of {self._store.root} {error}") from error
            taken = vectors[which]
            np.add.at(columns, documents, np.stack([np.ones_like(taken), taken], axis=1))
            found[:, 0] += columns[:, 1]
            each = np.array([_cost(room, count) for count in vectors.tolist()], dtype=np.int64)
            np.add.at(costs, documents, each[which])
        return found, costs

    def _shuffled(self, packed: PackedSequences, epoch: int, window: int) -> PackedSequences:
        # Best fit leaves the longest documents in the first sequences, and first in each sequence.
        parts = self.order.permutation(len(packed.parts), _PARTS, epoch, window)
        sequences = self.order.permutation(len(packed), _SEQUENCES, epoch, window)
        sizes = np.diff(packed.starts)
        # The inverse of a permutation tells where something goes.
        owners = np.repeat(np.argsort(sequences), sizes)
        order = np.lexsort((np.argsort(parts), owners))
        return PackedSequences(
            parts=packed.parts[order],
            lengths=packed.lengths[order],
            starts=np.concatenate(([0], sizes[sequences].cumsum())),
        )


def _cost(room: Room, slots: int) -> int:
    return 0 if room.cost is None else room.cost(slots)


def _named(room: Room) -> str:
    name = MEDIA.get(room.kind)
    return "spans" if name is None else f"spans of {name}"


class StreamSequences:
    """Sequences cut from the stream that all documents make, one after the other as stored.

    Sequence k of an epoch is `<s>` and tokens [k S, (k + 1) S) of the stream, so that nothing is
    padded and every token of the stream is a target once; the last S - 1 tokens or fewer are left
    out. A sequence is found from the sums of lengths of one shard or a few.

    Source: MetaLM §3.2 and RoBERTa's full-sentences packing, where the remainder of a sequence
    would be left empty rather than hold the beginning of a sentence.

    Args:
        order: of the sequences.
        store: that holds the documents.
        sequence_tokens: S.

    Raises:
        DataError (from `sequence`): a shard's lengths cannot be read.
    """

    def __init__(self, order: GlobalOrder, store: ShardStore, *, sequence_tokens: int):
        self.order = order
        self._store = store
        self._documents = np.concatenate([[0], np.cumsum(store.shard_sizes)])
        self._tokens = np.concatenate([[0], store.totals[:, 0].cumsum()])
        self._sequence_tokens = sequence_tokens
        self._bounds = lru_cache(_KEPT_SHARDS)(self._bounds_in)
        self._planned = lru_cache(maxsize=1)(self._plan)

    def sequence(self, number: int) -> PlannedSequence:
        """The sequence with this number."""
        block, offset = divmod(number, _BLOCK)
        return self._planned(block)[offset]

    def sequences_an_epoch(self, total_tokens: int) -> float:
        """Sequences that the stream makes, which are as many as it has tokens for."""
        return total_tokens // self._sequence_tokens

    def count_up_to(self, count: int) -> int:
        """Sequences of an epoch, or `count` where there are more."""
        return min(count, len(self.order))

    def anchor(self, number: int) -> None:
        """Nothing: any sequence is found at once."""

    def _plan(self, block: int) -> list[PlannedSequence]:
        positions = self.order.range(block * _BLOCK, (block + 1) * _BLOCK)
        cut = self._cut(np.array([place for _, place in positions]))
        return [
            PlannedSequence(
                epoch=epoch,
                number=place,
                parts=cut.sequence(offset),
                lengths=cut.recorded(offset),
            )
            for offset, (epoch, place) in enumerate(positions)
        ]

    def _cut(self, places: Ints) -> PackedSequences:
        """The sequences at these places of the stream."""
        begins = places * self._sequence_tokens
        owners, shards, begins, ends = _touched(
            self._tokens, begins, begins + self._sequence_tokens
        )
        found: list[Ints] = []
        for shard in np.unique(shards).tolist():
            mine = np.flatnonzero((shards == shard) & (ends > begins))
            bounds = self._bounds(shard)
            of, documents, begin, end = _touched(bounds, begins[mine], ends[mine])
            numbers = documents + self._documents[shard]
            lengths = bounds[documents + 1] - bounds[documents]
            found.append(np.stack([owners[mine[of]], numbers, begin, end, lengths], axis=1))
        parts = np.concatenate(found)
        parts = parts[parts[:, 3] > parts[:, 2]]
        parts = parts[np.lexsort((parts[:, 1], parts[:, 0]))]
        starts = np.searchsorted(parts[:, 0], np.arange(len(places) + 1))
        return PackedSequences(parts=parts[:, 1:4], lengths=parts[:, 4], starts=starts)

    def _bounds_in(self, shard: int) -> Ints:
        """[n + 1] where each document of a shard begins, in tokens from its first, and the end."""
        return np.concatenate([[0], self._store.lengths(shard)[:, 0].cumsum(dtype=np.int64)])


def _touched(bounds: Ints, begins: Ints, ends: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """What ranges take of things that lie one after the other.

    Args:
        bounds: where each thing begins, and the end of the last.
        begins: of the ranges.
        ends: of the ranges.

    Returns:
        The range, the thing, and what is taken of it, counted from its beginning; of each pair.
    """
    first, last = (np.searchsorted(bounds, at, side="right") - 1 for at in (begins, ends - 1))
    counts = last - first + 1
    things = runs(first, counts)
    owners = np.repeat(np.arange(len(begins)), counts)
    starts = bounds[things]
    ends = np.minimum(ends[owners], bounds[things + 1])
    return owners, things, np.maximum(begins[owners] - starts, 0), ends - starts


assert LENGTH_COLUMNS[:3] == ("tokens", "spans", "span_tokens"), "what packing reads"
