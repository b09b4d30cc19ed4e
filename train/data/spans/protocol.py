"""The protocol between the collator and a modality."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from model.batch import PackedSpans
from train.data.sample import Sample
from train.data.spans.places import FlatSpans, Ints, Spans


@dataclass(frozen=True, kw_only=True)
class SpanCapacity:
    """Room for spans in one sequence; a microbatch of B sequences has B times as much.

    Attributes:
        tokens: span tokens (vectors) a sequence.
        spans: spans a sequence.
        longest_tokens: tokens of the longest span an encoder can read.
        item_slots: slots that each item takes, whatever its size; None where each vector that its
            encoder gives takes one.
        prefix_tokens: tokens of text behind each item that may be read with it.
    """

    tokens: int
    spans: int
    longest_tokens: int
    item_slots: int | None = None
    prefix_tokens: int = 0

    @property
    def most_slots(self) -> int:
        """Slots of all spans, text behind items included."""
        return self.tokens + self.spans * self.prefix_tokens

    @property
    def most_in_one(self) -> int:
        """Slots of the longest span, the text behind an item included."""
        return self.longest_tokens + self.prefix_tokens


class Draw(NamedTuple):
    """Which time it is that a sample trains: what is drawn at random is a function of it.

    Attributes:
        epoch: how often its source was gone through before.
        choice: of several choices of a sample that train in one step, which one.
    """

    epoch: int
    choice: int = 0


class SpanReader(Protocol):
    """Chooses the spans of one modality, and packs what its encoder reads."""

    @property
    def capacity(self) -> SpanCapacity:
        """Static room in one sequence."""
        ...

    def choose(self, sample: Sample, *, epoch: int, choice: int = 0) -> Spans:
        """Spans of `sample` in `epoch`: the same on every rank and after every restart.

        Several choices of a sample may train in one step; each is another choice if there is one.
        """
        ...

    def pack(
        self,
        samples: Sequence[Sample],
        tokens: Ints,
        spans: FlatSpans,
        *,
        draws: Sequence[Draw] | None = None,
    ) -> PackedSpans:
        """What the encoder reads of a batch, one padding span where there is none.

        Args:
            samples: B samples.
            tokens: [B, S] their tokens.
            spans: those chosen, which fit the capacity.
            draws: of each sample, where items are changed at random; None leaves them as they are.
        """
        ...
