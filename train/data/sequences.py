"""The sequences of one source, by number, without end: which stored samples each one holds.

A sequence is a pure function of (seed, source, number): no rank, worker or restart has a say in it.
Sequences of documents are packed window by window of the global order; how many a window gives is
known once it has been packed, so a sequence far from the beginning is found by packing all windows
before it, or from an `Anchor` that a checkpoint brings.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from train.data.document import LENGTH_COLUMNS
from train.data.order import GlobalOrder
from train.data.pack import PackedSequences, SequenceShape, TooLongError, pack
from train.errors import DataError

Ints = npt.NDArray[np.int64]

_SEQUENCES: Final = 2
_PARTS: Final = 3
_KEPT_WINDOWS: Final = 3
_KEPT_STARTS: Final = 65_536
_MEASURED_WINDOWS: Final = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedSequence:
    """One sequence, as it is planned.

    Attributes:
        epoch: how often its source was gone through before.
        number: of the sequence in its epoch, or of the stored sample; seeds what is random in it.
        parts: [p, 3] number in the store, and the half-open range of its tokens that is taken;
            [number, 0, -1] for all of it.
    """

    epoch: int
    number: int
    parts: Ints


class Sequences(Protocol):
    """The sequences of a source."""

    def sequence(self, number: int) -> PlannedSequence:
        """The sequence with a number counted from 0 through all epochs."""
        ...

    def anchor(self, number: int) -> list[int] | None:
        """What finds the sequence quickly after a restart; None if nothing has to be known."""
        ...

    def start_at(self, anchor: list[int]) -> None:
        """Make sequences from an anchor on quick to find."""
        ...


class StoredSequences:
    """Sequences of a corpus of whole sequences: one stored sample each."""

    def __init__(self, order: GlobalOrder):
        self._order = order

    def sequence(self, number: int) -> PlannedSequence:
        """The sequence with this number."""
        epoch, sample = self._order.sample_at(number)
        return PlannedSequence(epoch=epoch, number=sample, parts=np.array([[sample, 0, -1]]))

    def anchor(self, number: int) -> None:
        """Nothing: any sequence is found at once."""

    def start_at(self, anchor: list[int]) -> None:
        """Refuse an anchor, which only documents have.

        Raises:
            DataError: always.
        """
        del anchor
        raise DataError("the run began with documents, and the corpus now holds whole sequences")


class DocumentSequences:
    """Sequences packed from documents.

    Args:
        order: of the documents.
        lengths: [n, 6] lengths of the documents of a shard, see `LENGTH_COLUMNS`.
        shape: of a sequence.
        place: what to call the corpus in messages.

    Raises:
        DataError (from `sequence`): a document with spans does not fit; a shard's lengths cannot
            be read.
    """

    def __init__(
        self,
        order: GlobalOrder,
        lengths: Callable[[int], npt.NDArray[np.uint32]],
        *,
        shape: SequenceShape,
        place: str,
    ):
        self._order = order
        self._lengths = lengths
        self._shape = shape
        self._place = place
        # Of each window from some one on: its first sequence, epoch, number, first of the epoch.
        self._starts: list[list[int]] = [[0, 0, 0, 0]]
        self._packed: OrderedDict[tuple[int, int], PackedSequences] = OrderedDict()

    def sequence(self, number: int) -> PlannedSequence:
        """The sequence with this number."""
        first, epoch, window, first_of_epoch = self._window_of(number)
        packed = self._pack(epoch, window)
        return PlannedSequence(
            epoch=epoch, number=number - first_of_epoch, parts=packed.sequence(number - first)
        )

    def sequences_an_epoch(self, total_tokens: int) -> float:
        """Sequences that all documents make, told from the first windows where there are many.

        Args:
            total_tokens: of all documents.
        """
        windows = range(min(self._order.num_windows, _MEASURED_WINDOWS))
        packed = [self._pack(0, window) for window in windows]
        tokens = sum(int((each.parts[:, 2] - each.parts[:, 1]).sum()) for each in packed)
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

    def start_at(self, anchor: list[int]) -> None:
        """Know where one window begins, and with it all later ones.

        Raises:
            DataError: it is no anchor.
        """
        if len(anchor) != 4 or min(anchor) < 0 or anchor[2] >= self._order.num_windows:
            raise DataError(f"the checkpoint's position in {self._place} is damaged: {anchor}")
        self._starts = [list(anchor)]

    def _window_of(self, number: int) -> list[int]:
        if number < self._starts[0][0]:
            self._starts = [[0, 0, 0, 0]]
        while number >= self._starts[-1][0]:
            self._extend()
        return self._starts[bisect_right(self._starts, number, key=lambda start: start[0]) - 1]

    def _extend(self) -> None:
        first, epoch, window, first_of_epoch = self._starts[-1]
        after = first + len(self._pack(epoch, window))
        if window + 1 < self._order.num_windows:
            self._starts.append([after, epoch, window + 1, first_of_epoch])
        else:
            self._starts.append([after, epoch + 1, 0, after])
        if len(self._starts) > 2 * _KEPT_STARTS:
            del self._starts[:-_KEPT_STARTS]

    def _pack(self, epoch: int, window: int) -> PackedSequences:
        key = (epoch, window)
        if key in self._packed:
            self._packed.move_to_end(key)
            return self._packed[key]
        ids = self._order.window_ids(epoch, window)
        lengths = self._lengths_of(ids)
        try:
            packed = pack(lengths, self._shape)
        except TooLongError as error:
            raise DataError(
                f"document {ids[error.document]} of {self._place} {error}: raise "
                "data.sequence_tokens or data.span_capacity, or leave it out when the corpus is "
                "built"
            ) from None
        packed = self._shuffled(packed, epoch, window)
        packed.parts[:, 0] = ids[packed.parts[:, 0]]
        self._packed[key] = packed
        while len(self._packed) > _KEPT_WINDOWS:
            self._packed.popitem(last=False)
        return packed

    def _lengths_of(self, ids: Ints) -> Ints:
        shards, places = self._order.locate(ids)
        found = np.empty((len(ids), 3), dtype=np.int64)
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            found[mine] = self._lengths(shard)[places[mine], :3]
        return found

    def _shuffled(self, packed: PackedSequences, epoch: int, window: int) -> PackedSequences:
        # Best fit leaves the longest documents in the first sequences, and first in each sequence.
        num_parts = len(packed.parts)
        owner = np.repeat(np.arange(len(packed)), np.diff(packed.starts))
        random = self._order.permutation(num_parts, _PARTS, epoch, window)
        place = np.empty(num_parts, dtype=np.int64)
        place[random] = np.arange(num_parts)
        parts = packed.parts[np.lexsort((place, owner))]
        packed = PackedSequences(parts=parts, starts=packed.starts)
        return packed.reordered(self._order.permutation(len(packed), _SEQUENCES, epoch, window))


assert LENGTH_COLUMNS[:3] == ("tokens", "spans", "span_tokens"), "what packing reads"
