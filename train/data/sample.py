"""One stored sample: a token sequence, and what a task says about its spans and its targets."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A sequence of S + 1 tokens as it lies in a shard: slot t reads token t and predicts t + 1.

    Attributes:
        id: place of the sample in its dataset, the same on every rank and after every restart.
        tokens: [S + 1] or shorter (the collator pads).
        spans: [k, 2] half-open ranges that the task gives to the encoder, in rising order; None
            where the objective chooses spans itself.
        scored: [S + 1] whether each token may be a target; None where all are.
        documents: [n, 2] half-open ranges of the documents, or parts of documents, that were packed
            into it; None where only the tokens tell (`</d>` ends one).
        source: number of the source it comes from, of those that a run mixes.
    """

    id: int
    tokens: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64] | None = None
    scored: npt.NDArray[np.bool_] | None = None
    documents: npt.NDArray[np.int64] | None = None
    source: int = 0
