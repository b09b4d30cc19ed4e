"""The spans of a batch as flat arrays, and the arithmetic of runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from train.data.spans.places import Spans

Ints = npt.NDArray[np.int64]


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
