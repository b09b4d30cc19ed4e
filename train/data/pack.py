"""Documents of many lengths into rows of one length, planned from the lengths alone.

Best fit, longest document first: a document goes where it leaves the least room. Whole documents
stay whole; those longer than a row are cut into rows and a rest. Where documents fit each other
badly (all a little over half a row, say), some are cut to fill the gaps, until rows are as full as
asked.

Source: Ding et al., "Fewer Truncations Improve Language Modeling" (2024), §3, for best fit; the
cuts into gaps are ours.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LEAST_FILL = 0.97
"""Below this share of slots that hold tokens, whole documents are cut to fill gaps."""
AIM_FILL = 0.98
"""How full rows are made by cutting."""
LEAST_CUT = 16
"""Tokens of the smallest part that a document is cut into to fill a gap."""
_TRIES = 64
"""Rows with enough slots that are asked whether they also have room for a document's spans; where
these have none, others will hardly."""


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """What one row has room for.

    Attributes:
        slots: tokens, those that open each document included.
        opening: slots that each document's part takes besides its tokens.
        span_tokens: tokens in stored spans; None where spans are chosen later.
        spans: stored spans; None likewise.
    """

    slots: int
    opening: int = 0
    span_tokens: int | None = None
    spans: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedRows:
    """Rows in parts: the parts of row r are `pieces[starts[r]:starts[r + 1]]`.

    Attributes:
        pieces: [P, 3] document (its place in the lengths), and the half-open range of its tokens.
        starts: [rows + 1].
    """

    pieces: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> Ints:
        """[p, 3] parts of one row, in the order in which they are laid out."""
        return self.pieces[self.starts[number] : self.starts[number + 1]]

    def reordered(self, order: Ints) -> "PackedRows":
        """The same rows in another order."""
        sizes = np.diff(self.starts)[order]
        starts = np.concatenate(([0], sizes.cumsum()))
        inside = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
        return PackedRows(
            pieces=self.pieces[np.repeat(self.starts[:-1][order], sizes) + inside], starts=starts
        )


@dataclass(slots=True, eq=False)
class _Row:
    free: int
    span_tokens: int = 0
    spans: int = 0
    pieces: list[tuple[int, int, int]] = field(default_factory=list)


class TooLongError(ValueError):
    """A document with spans does not fit a row, and spans are not cut.

    Attributes:
        document: its place in the lengths.
    """

    def __init__(self, document: int, what: str):
        super().__init__(what)
        self.document = document


def pack(lengths: Ints, shape: RowShape) -> PackedRows:
    """Lay documents into rows.

    Args:
        lengths: [n, 3] tokens, spans and tokens in spans of each document.
        shape: of a row.

    Raises:
        TooLongError: a document with spans does not fit a row.
    """
    pieces = _cut(lengths, shape)
    rows = _fill_gaps(_best_fit(pieces, lengths, shape), shape)
    starts = np.cumsum([0, *(len(row.pieces) for row in rows)])
    flat = [piece for row in rows for piece in row.pieces]
    return PackedRows(pieces=np.array(flat, dtype=np.int64).reshape(-1, 3), starts=starts)


def _cut(lengths: Ints, shape: RowShape) -> Ints:
    """[P, 3] parts that fit a row each: documents, or stretches of long ones."""
    room = shape.slots - shape.opening
    tokens = lengths[:, 0]
    if shape.spans is not None:
        assert shape.span_tokens is not None
        refused = (lengths[:, 1] > 0) & (
            (tokens > room) | (lengths[:, 2] > shape.span_tokens) | (lengths[:, 1] > shape.spans)
        )
        if refused.any():
            document = int(np.flatnonzero(refused)[0])
            have, spans, inside = lengths[document].tolist()
            raise TooLongError(
                document,
                f"has {have} tokens, {inside} of them in {spans} spans, but a row holds {room}, "
                f"{shape.span_tokens} and {shape.spans}",
            )
    counts = np.maximum(1, -(-tokens // room))
    documents = np.repeat(np.arange(len(tokens)), counts)
    places = np.arange(len(documents)) - np.repeat(counts.cumsum() - counts, counts)
    begins = places * room
    ends = np.minimum(begins + room, tokens[documents])
    pieces = np.stack([documents, begins, ends], axis=1)
    return pieces[ends > begins]


def _best_fit(pieces: Ints, lengths: Ints, shape: RowShape) -> list[_Row]:
    """Rows by falling length of their first part; equal lengths stay in order."""
    order = np.argsort(pieces[:, 1] - pieces[:, 2], kind="stable")
    rows: list[_Row] = []
    # Rows with r slots free are in gaps[r]; bit r of `present` says that there are any.
    gaps: list[list[_Row]] = [[] for _ in range(shape.slots + 1)]
    present = 0
    has_spans = shape.spans is not None
    for document, begin, end in pieces[order].tolist():
        need = end - begin + shape.opening
        spans, inside = (int(n) for n in lengths[document, 1:3]) if has_spans else (0, 0)
        row, free = _find(gaps, present, need, spans=spans, inside=inside, shape=shape)
        if row is None:
            row = _Row(free=shape.slots)
            rows.append(row)
        elif not gaps[free]:
            present &= ~(1 << free)
        row.free -= need
        row.spans += spans
        row.span_tokens += inside
        row.pieces.append((document, begin, end))
        gaps[row.free].append(row)
        present |= 1 << row.free
    return rows


def _find(
    gaps: list[list[_Row]], present: int, need: int, *, spans: int, inside: int, shape: RowShape
) -> tuple[_Row | None, int]:
    """Take out the row with the narrowest gap that has room, and what its gap was."""
    tries = _TRIES
    free = need
    above = present >> need
    while above and tries:
        free += (above & -above).bit_length() - 1
        rows = gaps[free]
        if not spans:
            return rows.pop(), free
        assert shape.spans is not None
        assert shape.span_tokens is not None
        for place in range(len(rows) - 1, max(-1, len(rows) - 1 - tries), -1):
            row = rows[place]
            if row.spans + spans <= shape.spans and row.span_tokens + inside <= shape.span_tokens:
                del rows[place]
                return row, free
        tries = max(0, tries - len(rows))
        free += 1
        above = present >> free
    return None, 0


def _fill_gaps(rows: list[_Row], shape: RowShape) -> list[_Row]:
    """Where rows are too empty, take the emptiest apart and pour their parts into the others."""
    used = sum(shape.slots - row.free for row in rows)
    num_enough = math.ceil(used / (AIM_FILL * shape.slots))
    if len(rows) <= num_enough or used >= LEAST_FILL * shape.slots * len(rows):
        return rows
    rows.sort(key=lambda row: (bool(row.spans), -row.free))  # spans are never cut
    num_donors = min(len(rows) - num_enough, sum(not row.spans for row in rows))
    waiting = [piece for row in rows[:num_donors] for piece in row.pieces]
    kept = sorted(rows[num_donors:], key=lambda row: -row.free)
    least = min(LEAST_CUT + shape.opening, shape.slots)
    for row in kept:
        while waiting and row.free >= least:
            waiting += _pour(waiting.pop(), row, shape)
    while waiting:
        kept.append(_Row(free=shape.slots))
        while waiting and kept[-1].free >= least:
            waiting += _pour(waiting.pop(), kept[-1], shape)
    return kept


def _pour(piece: tuple[int, int, int], row: _Row, shape: RowShape) -> list[tuple[int, int, int]]:
    """Put as much of a part into a row as goes in; what is left of it."""
    document, begin, end = piece
    cut = min(end, begin + row.free - shape.opening)
    row.pieces.append((document, begin, cut))
    row.free -= cut - begin + shape.opening
    return [(document, cut, end)] if cut < end else []
