"""A sequence as it was read: its tokens, and what its documents say of spans and targets."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.data.document import Kind


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleItem:
    """An item of a document, such as a picture, and its slots.

    Attributes:
        kind: its modality.
        size: what was recorded of it when the corpus was built.
        data: the file.
        start: its first slot.
        stop: the slot behind its last.
        name: what it is called in messages, with its document.
        document: number of its document in its source.
        place: its number among the items of its document, from 1.
    """

    kind: Kind
    size: tuple[int, ...]
    data: bytes
    start: int
    stop: int
    name: str
    document: int = 0
    place: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A sequence of S + 1 tokens, assembled of documents: slot t reads token t, predicts t + 1.

    Attributes:
        id: number of the sequence in its source, the same on every rank and after every restart.
        tokens: [S + 1] or shorter (the collator pads).
        spans: [k, 2] half-open ranges that the task gives to the encoder, in rising order; None
            where the objective chooses spans itself.
        scored: [S + 1] whether each token may be a target; None where all are.
        documents: [n, 2] half-open ranges of the documents, or parts of documents, that were packed
            into it; None where only the tokens tell (`</d>` ends one).
        source: number of the source it comes from, of those that a run mixes.
        items: of other modalities, in rising order; their slots hold padding that is no target.
    """

    id: int
    tokens: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64] | None = None
    scored: npt.NDArray[np.bool_] | None = None
    documents: npt.NDArray[np.int64] | None = None
    source: int = 0
    items: tuple[SampleItem, ...] = ()
