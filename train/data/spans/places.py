"""Places in a sequence where spans may lie, and the generator that draws them."""

import numpy as np
import numpy.typing as npt

from train.data.sample import Sample
from train.data.tokens import SpecialTokens

Spans = npt.NDArray[np.int64]
"""[k, 2] half-open ranges in rising order, without overlap."""

NO_SPANS: Spans = np.zeros((0, 2), dtype=np.int64)

Range = tuple[int, int]
"""Half-open."""


def places(sample: Sample, special: SpecialTokens) -> list[Range]:
    """The range of each document, or part of one, in which spans may lie; empty ones left out.

    `<s>` and the last token of a document are in no span: behind it another document begins, and
    what was packed into a sequence then trains as it would alone. Nor is the last token of a
    sequence, which has no slot.
    """
    tokens = sample.tokens
    if sample.documents is None:
        last = len(tokens) - 1
        ends = np.flatnonzero(tokens[:last] == special.document).tolist()
        ranges = [
            (max(1, start), stop)
            for start, stop in zip([1, *(end + 1 for end in ends)], [*ends, last], strict=True)
        ]
    else:
        ranges = [
            (start + (start == 0 or int(tokens[start]) == special.start), stop - 1)
            for start, stop in sample.documents.tolist()
        ]
    return [(start, stop) for start, stop in ranges if start < stop]


def generator(seed: int, epoch: int, sample: Sample, choice: int) -> np.random.Generator:
    """What a sample's spans are drawn with: a function of its arguments, the same on every rank."""
    key = [seed, epoch, sample.id]
    if sample.source == 0 and choice == 0:
        return np.random.default_rng(key)
    # Not further words of the key: an id beyond 32 bits is two words of it.
    return np.random.default_rng(np.random.SeedSequence(key, spawn_key=(sample.source, choice)))
