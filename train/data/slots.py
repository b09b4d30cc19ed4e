"""A document as a sequence holds it: slots for its items among its tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from train.data.document import Document, Item, Kind

Vectors = Callable[[Sequence[int]], int]
"""Slots of an item of a size: a pure function of what an encoder is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slotted:
    """Tokens of a document, with a filler in every slot of its items.

    Attributes:
        tokens: [T].
        scored: [T] whether each may be a target; a filler never is.
        spans: [k, 2] half-open ranges of the text spans.
        items: each item, and the first of its slots and the one behind its last.
    """

    tokens: npt.NDArray[np.int64]
    scored: npt.NDArray[np.bool_]
    spans: npt.NDArray[np.int64]
    items: list[tuple[Item, int, int]] = field(default_factory=list)


def slotted(document: Document, vectors: Mapping[Kind, Vectors], *, filler: int) -> Slotted:
    """Make room for a document's items where they stand.

    Args:
        document: as it is stored.
        vectors: slots of items, by kind.
        filler: token of a slot that a vector takes.

    Raises:
        ValueError: the size of an item was not recorded; the message is the end of a sentence.
    """
    items = list(document.items())
    if not items:
        return Slotted(tokens=document.tokens, scored=document.scored, spans=document.spans)
    at = np.array([item.at for item in items])
    counts = np.array([num_vectors(vectors[item.kind], item.size) for item in items])
    ends = at + counts.cumsum()
    where = np.repeat(at, counts)
    # An item that stands where a span begins stands before it, as a span holds a token.
    spans = document.spans
    before = np.searchsorted(at, spans[:, 0], side="right")
    spans = spans + np.concatenate([[0], counts.cumsum()])[before][:, None]
    bounds = zip(items, (ends - counts).tolist(), ends.tolist(), strict=True)
    return Slotted(
        tokens=np.insert(document.tokens, where, filler),
        scored=np.insert(document.scored, where, False),
        spans=spans,
        items=list(bounds),
    )


def num_vectors(vectors: Vectors, size: Sequence[int]) -> int:
    """Slots of an item.

    Raises:
        ValueError: its size was not recorded, or its encoder does not read what is so large; the
            message is the end of a sentence.
    """
    if not all(size):
        raise ValueError("has an item whose size was not recorded: build the corpus again")
    return vectors(size)
