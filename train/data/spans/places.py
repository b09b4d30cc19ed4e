"""Places of spans: where they may lie, what draws them, and those of a batch as flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from train.data.sample import Sample
from train.data.tokens import SpecialTokens

Ints = npt.NDArray[np.int64]

Spans = Ints
"""[k, 2] half-open ranges in rising order, without overlap."""

NO_SPANS: Spans = np.zeros((0, 2), dtype=np.int64)

Range = tuple[int, int]
"""Half-open."""


def places(sample: Sample, special: SpecialTokens) -> list[Range]:
    """The range of each document, or part of one, in which spans may lie; empty ones left out.

    Spans leave out `<s>` and each document's last token, so that a packed document trains as it
    would alone, and the last token of a sequence, which has no slot.
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


def around_items(place: Range, sample: Sample) -> list[Range]:
    """What of a range is text, where items stand in it."""
    start, stop = place
    free: list[Range] = []
    for item in sample.items:
        if start < item.stop and item.start < stop:
            free.append((start, item.start))
            start = item.stop
    return [(a, b) for a, b in [*free, (start, stop)] if a < b]


def generator(seed: int, epoch: int, sample: Sample, choice: int) -> np.random.Generator:
    """What a sample's spans are drawn with: a function of its arguments, the same on every rank."""
    key = [seed, epoch, sample.id]
    if sample.source == 0 and choice == 0:
        return np.random.default_rng(key)
    # Not further words of the key: an id beyond 32 bits is two words of it.
    return np.random.default_rng(np.random.SeedSequence(key, spawn_key=(sample.source, choice)))


@dataclass(frozen=True)
class FlatSpans:
    """All spans of a batch, sequence after sequence; [K] each.

    Attributes:
        owners: place in the batch of the sequence that holds the span.
        starts: its first token.
        lengths: its tokens.
    """

    owners: Ints
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, chosen: Sequence[Spans]) -> "FlatSpans":
        """The spans chosen for each sequence."""
        owners = np.repeat(np.arange(len(chosen)), [len(spans) for spans in chosen])
        spans = np.concatenate(chosen)
        return cls(owners, spans[:, 0], spans[:, 1] - spans[:, 0])

    def __len__(self) -> int:
        return len(self.owners)

    def first_slots(self, sequence_tokens: int) -> Ints:
        """Slot in B*S of each span's first token."""
        return self.owners * sequence_tokens + self.starts


def runs(starts: Ints, lengths: Ints) -> Ints:
    """All numbers of the runs that begin at `starts`, one run after the other."""
    before = lengths.cumsum() - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def padded(values: Ints, room: int, filler: int = 0) -> torch.Tensor:
    """The values, and filler up to a static size."""
    if len(values) == room:
        return torch.from_numpy(values)
    filled = np.full(room, filler, dtype=np.int64)
    filled[: len(values)] = values
    return torch.from_numpy(filled)
