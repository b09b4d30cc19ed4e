"""The rule of scoring, stated once: which slots predict their next token.

Slot t reads token t and predicts token t + 1. Every token is predicted but the interior of a span:
a span's first token is predicted from the slot before it, and the token after a span from the
span's last vector. The interior is visible to the vectors it would be predicted from. Where
documents are kept apart, no slot predicts a token of another one. A task may score fewer.

Source: MetaLM §2.3, Eq. 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from train.data.sample import Sample
from train.data.spans.places import FlatSpans, Ints, Spans, runs

Bools = npt.NDArray[np.bool_]

USUAL_DOCUMENT_TOKENS = 512
"""There is room for the bounds of as many documents as this length gives, or twice as many, and so
on: few sizes, so that what is compiled for one serves, and none much too large, because kernels are
launched for empty documents too."""

Unscored = Literal["stop", "pass_over"]
"""What a step does whose batch has no scored token: end the run, or nothing."""


@dataclass(frozen=True)
class Documents:
    """Which document each slot belongs to, where they are kept apart; [B, S] each.

    Attributes:
        ids: number of the document in its sequence, -1 on padding.
        positions: place in the document.
        goes_on: whether the next token is of the same document.
        bounds: [N] int32, as in `Batch.documents`.
    """

    ids: Ints
    positions: Ints
    goes_on: Bools
    bounds: npt.NDArray[np.int32]

    @classmethod
    def of(cls, samples: Sequence[Sample], sequence_tokens: int) -> "Documents":
        """Those that samples name; a sample that names none is one."""
        shape = (len(samples), sequence_tokens)
        ids = np.full(shape, -1, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        goes_on = np.zeros(shape, dtype=np.bool_)
        count = np.arange(sequence_tokens)
        bounds = {len(samples) * sequence_tokens}
        for row, sample in enumerate(samples):
            whole = [[0, len(sample.tokens)]]
            ranges = whole if sample.documents is None else sample.documents.tolist()
            first = row * sequence_tokens
            bounds.add(first)
            for number, (start, stop) in enumerate(ranges):
                bounds.update(first + min(edge, sequence_tokens) for edge in (start, stop))
                ids[row, start:stop] = number
                positions[row, start:stop] = count[: min(stop, sequence_tokens) - start]
                goes_on[row, start : stop - 1] = True
        return cls(ids, positions, goes_on, _bounds(bounds, *shape))


def _bounds(found: set[int], num_sequences: int, sequence_tokens: int) -> npt.NDArray[np.int32]:
    """In rising order, the last repeated to one of few sizes."""
    size = num_sequences * max(1, sequence_tokens // USUAL_DOCUMENT_TOKENS) + 1
    while size < len(found):
        size = 2 * size - 1
    bounds = np.full(size, max(found), dtype=np.int32)
    bounds[: len(found)] = sorted(found)
    return bounds


def scored_slots(
    samples: Sequence[Sample],
    sequence_tokens: int,
    *,
    spans: Iterable[FlatSpans],
    documents: Documents | None,
) -> Bools:
    """[B, S] which slots are scored.

    Args:
        samples: B samples of at most S + 1 tokens.
        sequence_tokens: S.
        spans: of each modality.
        documents: where they are kept apart.
    """
    scored = np.zeros((len(samples), sequence_tokens), dtype=np.bool_)
    for row, sample in enumerate(samples):
        last = max(0, len(sample.tokens) - 1)
        scored[row, :last] = True if sample.scored is None else sample.scored[1:]
    if documents is not None:
        scored &= documents.goes_on
    for each in spans:
        scored.reshape(-1)[runs(each.first_slots(sequence_tokens), each.lengths - 1)] = False
    return scored


def scored_tokens(sample: Sample, spans: Spans) -> Bools:
    """[S + 1] which tokens of one sample the rule has predicted."""
    flat = FlatSpans.of([spans])
    slots = scored_slots([sample], len(sample.tokens) - 1, spans=[flat], documents=None)
    return np.concatenate([[False], slots[0]])
