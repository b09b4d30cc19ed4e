"""Documents of many lengths into sequences of one length, planned from the lengths alone.

Best fit, longest document first: a document goes where it leaves the least room. Whole documents
stay whole; those longer than a sequence are cut into sequences and a rest. Where documents fit each
other badly (all a little over half a sequence, say), some are cut to fill the gaps, until sequences
are as full as asked.

Source: Ding et al., "Fewer Truncations Improve Language Modeling" (2024), §3, for best fit; the
cuts into gaps are ours.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from train.data.document import Kind
from train.data.slots import Vectors
from train.data.spans.places import runs

Ints = npt.NDArray[np.int64]

Pack = Literal["fit", "stream"]
"""Whether documents stay whole where they fit a sequence, or are cut every S tokens of a stream."""

LEAST_FILL = 0.97
"""Below this share of slots that hold tokens, whole documents are cut to fill gaps."""
AIM_FILL = 0.98
"""How full sequences are made by cutting."""
LEAST_CUT = 16
"""Tokens of the smallest part that a document is cut into to fill a gap."""
_TRIES = 64
"""Sequences with enough slots that are asked whether they also have room for a document's spans;
where these have none, others will hardly."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What one sequence has room for, of the spans of one kind that documents bring.

    Attributes:
        kind: of the spans.
        spans: how many.
        slots: that they take, all together.
        vectors: slots of one by its size; None of text, whose tokens are counted.
        cost: operations that its encoder trains with, of one by its slots; None where nobody asks.
    """

    kind: Kind
    spans: int
    slots: int
    vectors: Vectors | None = None
    cost: Callable[[int], int] | None = None


@dataclass(frozen=True, kw_only=True)
class SequenceShape:
    """What one sequence has room for.

    Attributes:
        slots: tokens, those that open each document included.
        opening: slots that each document's part takes besides its tokens.
        rooms: for spans that documents bring; stored spans without room are text like any.
    """

    slots: int
    opening: int = 0
    rooms: tuple[Room, ...] = ()

    @property
    def limits(self) -> list[int]:
        """Spans and slots of each room, one after the other."""
        return [number for room in self.rooms for number in (room.spans, room.slots)]


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedSequences:
    """Sequences in parts: the parts of sequence r are `parts[starts[r]:starts[r + 1]]`.

    Attributes:
        parts: [P, 3] document (its place in the lengths), and the half-open range of its tokens.
        lengths: [P] tokens of each part's document.
        starts: [sequences + 1].
        text_tokens: in all of them, items left aside; 0 where nobody asked.
        costs: [P] of the items in each part, see `Room`; None where nobody asked.
    """

    parts: Ints
    lengths: Ints
    starts: Ints
    text_tokens: int = 0
    costs: Ints | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def sequence(self, number: int) -> Ints:
        """[p, 3] parts of one sequence, in the order in which they are laid out."""
        return self.parts[self.starts[number] : self.starts[number + 1]]

    def recorded(self, number: int) -> Ints:
        """[p] lengths of the documents of one sequence."""
        return self.lengths[self.starts[number] : self.starts[number + 1]]

    def cost(self, number: int) -> int:
        """What the items of one sequence cost."""
        if self.costs is None:
            return 0
        return int(self.costs[self.starts[number] : self.starts[number + 1]].sum())


@dataclass(slots=True, eq=False)
class _Sequence:
    free: int
    taken: list[int]
    """Of each of the shape's limits."""
    parts: list[tuple[int, int, int]] = field(default_factory=list)


def pack(
    lengths: Ints, shape: SequenceShape, *, items: Mapping[int, Ints] | None = None
) -> PackedSequences:
    """Lay documents into sequences.

    Args:
        lengths: [n, 1 + limits] tokens of each document, items included, and its spans and their
            slots for each of the shape's rooms.
        shape: of a sequence.
        items: [m, 3] half-open range and number of the room of each item, of documents that do not
            fit a sequence: they are cut beside items. Any other with spans fits. A part that ends
            with an item leaves a slot free, as whatever stands last in a full sequence has none.
    """
    parts, wanted = _cut(lengths, shape, items or {})
    sequences = _fill_gaps(_best_fit(parts, wanted, shape), shape)
    starts = np.cumsum([0, *(len(sequence.parts) for sequence in sequences)])
    flat = [part for sequence in sequences for part in sequence.parts]
    laid = np.array(flat, dtype=np.int64).reshape(-1, 3)
    return PackedSequences(parts=laid, lengths=lengths[laid[:, 0], 0], starts=starts)


def _cut(lengths: Ints, shape: SequenceShape, items: Mapping[int, Ints]) -> tuple[Ints, Ints]:
    """[P, 4] parts that fit a sequence each: documents, or stretches of long ones.

    The last column is 1 for those that end with an item, 0 for others.

    Returns:
        The parts, and [P, limits] what each takes of the shape's rooms.
    """
    room = shape.slots - shape.opening
    tokens = lengths[:, 0]
    counts = np.maximum(1, -(-tokens // room))
    counts[list(items)] = 0
    documents = np.repeat(np.arange(len(tokens)), counts)
    begins = runs(np.zeros_like(counts), counts) * room
    ends = np.minimum(begins + room, tokens[documents])
    parts = np.stack([documents, begins, ends, np.zeros_like(ends)], axis=1)[ends > begins]
    wanted = lengths[parts[:, 0], 1:]
    for document, bounds in items.items():
        stretches, taken = _between_items(bounds.tolist(), int(tokens[document]), shape)
        mine = np.insert(np.array(stretches), 0, document, axis=1)
        parts = np.concatenate([parts, mine])
        wanted = np.concatenate([wanted, np.array(taken)])
    return parts, wanted


def _between_items(
    bounds: list[list[int]], num_tokens: int, shape: SequenceShape
) -> tuple[list[tuple[int, int, int]], list[list[int]]]:
    """Stretches of a document, each as long as a sequence has room for; no item is cut.

    A stretch ends with an item only where items follow each other without a word, and are too many.

    Args:
        bounds: half-open range and number of the room of each item, each of which fits, with a
            token behind it.
        num_tokens: of the document, whose last one is text.
        shape: of a sequence.

    Returns:
        Begin and end of each stretch and whether it ends with an item, and what each takes of the
        shape's rooms.
    """
    room, limits = shape.slots - shape.opening, shape.limits
    stretches: list[tuple[int, int, int]] = []
    taken: list[list[int]] = []

    def counted(items: list[list[int]]) -> list[int]:
        have = [0] * len(limits)
        for start, stop, of_room in items:
            have[2 * of_room] += 1
            have[2 * of_room + 1] += stop - start
        return have

    def fits(first: int, behind: int) -> bool:
        return all(a <= b for a, b in zip(counted(bounds[first:behind]), limits, strict=True))

    begin = first = 0
    while begin < num_tokens:
        end, behind = min(begin + room, num_tokens), first
        while behind < len(bounds) and bounds[behind][0] < end:
            if bounds[behind][1] > end or not fits(first, behind + 1):
                end = bounds[behind][0]
                break
            behind += 1
        while behind > first and bounds[behind - 1][1] == end:
            behind -= 1
            end = bounds[behind][0]
        closes = end == begin
        while closes and bounds[behind][1] < begin + room and fits(first, behind + 1):
            end = bounds[behind][1]
            behind += 1
        assert end > begin, "each item fits a sequence"
        stretches.append((begin, end, int(closes)))
        taken.append(counted(bounds[first:behind]))
        begin, first = end, behind
    return stretches, taken


def _best_fit(parts: Ints, wanted_of: Ints, shape: SequenceShape) -> list[_Sequence]:
    """Sequences by falling length of their first part; equal lengths stay in order."""
    order = np.argsort(parts[:, 1] - parts[:, 2], kind="stable")
    sequences: list[_Sequence] = []
    # Sequences with r slots free are in gaps[r]; bit r of `present` says that there are any.
    gaps: list[list[_Sequence]] = [[] for _ in range(shape.slots + 1)]
    present = 0
    limits = shape.limits
    for (document, begin, end, closes), wanted in zip(
        parts[order].tolist(), wanted_of[order].tolist(), strict=True
    ):
        need = end - begin + shape.opening + closes
        sequence, free = _find(gaps, present, need, wanted=wanted, limits=limits)
        if sequence is None:
            sequence = _Sequence(free=shape.slots, taken=[0] * len(limits))
            sequences.append(sequence)
        elif not gaps[free]:
            present &= ~(1 << free)
        sequence.free -= need
        if wanted:
            sequence.taken = [a + b for a, b in zip(sequence.taken, wanted, strict=True)]
        sequence.parts.append((document, begin, end))
        gaps[sequence.free].append(sequence)
        present |= 1 << sequence.free
    return sequences


def _find(
    gaps: list[list[_Sequence]],
    present: int,
    need: int,
    *,
    wanted: list[int],
    limits: list[int],
) -> tuple[_Sequence | None, int]:
    """Take out the sequence with the narrowest gap that has room, and what its gap was."""
    tries = _TRIES
    free = need
    has_spans = any(wanted)
    above = present >> need
    while above and tries:
        free += (above & -above).bit_length() - 1
        sequences = gaps[free]
        if not has_spans:
            return sequences.pop(), free
        for place in range(len(sequences) - 1, max(-1, len(sequences) - 1 - tries), -1):
            sequence = sequences[place]
            numbers = zip(sequence.taken, wanted, limits, strict=True)
            if all(have + more <= limit for have, more, limit in numbers):
                del sequences[place]
                return sequence, free
        tries = max(0, tries - len(sequences))
        free += 1
        above = present >> free
    return None, 0


def _fill_gaps(sequences: list[_Sequence], shape: SequenceShape) -> list[_Sequence]:
    """Where sequences are too empty, pour the parts of the emptiest into the others."""
    used = sum(shape.slots - sequence.free for sequence in sequences)
    num_enough = math.ceil(used / (AIM_FILL * shape.slots))
    if len(sequences) <= num_enough or used >= LEAST_FILL * shape.slots * len(sequences):
        return sequences
    sequences.sort(
        key=lambda sequence: (any(sequence.taken), -sequence.free)
    )  # spans are never cut
    num_donors = min(
        len(sequences) - num_enough, sum(not any(sequence.taken) for sequence in sequences)
    )
    waiting = [part for sequence in sequences[:num_donors] for part in sequence.parts]
    kept = sorted(sequences[num_donors:], key=lambda sequence: -sequence.free)
    least = min(LEAST_CUT + shape.opening, shape.slots)
    at = 0
    while waiting:
        if at == len(kept):
            kept.append(_Sequence(free=shape.slots, taken=[0] * len(shape.limits)))
        sequence = kept[at]
        at += 1
        while waiting and sequence.free >= least:
            document, begin, end = waiting.pop()
            cut = min(end, begin + sequence.free - shape.opening)
            sequence.parts.append((document, begin, cut))
            sequence.free -= cut - begin + shape.opening
            if cut < end:
                waiting.append((document, cut, end))
    return kept
