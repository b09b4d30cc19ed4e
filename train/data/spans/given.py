"""Spans that are given: by the configuration, or with each sample."""

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from model.config import MOST_TOKENS
from model.encoders.protocol import EncoderKind, SpanLoad
from train.data.sample import Sample
from train.data.spans.places import NO_SPANS, Spans
from train.data.spans.text import TextSpansConfig
from train.data.tokens import SpecialTokens

Slot = Annotated[int, Field(ge=0, le=MOST_TOKENS)]


class FixedSpansConfig(TextSpansConfig):
    """The same spans in every sequence; for tests and for comparisons on the same tokens."""

    kind: Literal["fixed"]
    ranges: list[Annotated[list[Slot], Field(min_length=2, max_length=2)]]
    """Half-open [start, stop] pairs in rising order."""

    @model_validator(mode="after")
    def _ordered(self) -> "FixedSpansConfig":
        bounds = [bound for pair in self.ranges for bound in pair]
        rising = all(a <= b for a, b in pairwise(bounds))
        if not rising or any(start >= stop for start, stop in self.ranges):
            raise ValueError("ranges: must rise, not overlap, and hold at least one token each")
        if bounds and bounds[0] < 1:
            raise ValueError("ranges: a span cannot start at slot 0, which holds <s>")
        return self

    @cached_property
    def _spans(self) -> Spans:
        return np.array(self.ranges, dtype=np.int64).reshape(-1, 2)

    def room(self, sequence_tokens: int) -> tuple[int, int]:
        """What the ranges take."""
        return sum(stop - start for start, stop in self.ranges), len(self.ranges)

    def load(self, sequence_tokens: int) -> SpanLoad:
        """The same."""
        tokens, spans = self.room(sequence_tokens)
        longest = max((stop - start for start, stop in self.ranges), default=0)
        return SpanLoad(vectors=tokens, spans=spans, longest=longest)

    def choose(
        self, sample: Sample, *, seed: int, epoch: int, choice: int, special: SpecialTokens
    ) -> Spans:
        """The ranges that lie inside the sample's slots."""
        return self._spans[self._spans[:, 1] < len(sample.tokens)]

    def faults(
        self, path: str, encoder: EncoderKind, *, sequence_tokens: int, longest_slots: int
    ) -> Iterator[str]:
        """Besides, ranges beyond the sequence."""
        yield from super().faults(
            path, encoder, sequence_tokens=sequence_tokens, longest_slots=longest_slots
        )
        for start, stop in self.ranges:
            if stop > sequence_tokens:
                yield (
                    f"{path}.ranges: [{start}, {stop}] ends beyond the sequence of "
                    f"{sequence_tokens} slots"
                )


class StoredSpansConfig(TextSpansConfig):
    """The spans that the task stored with each sample, by its own rule."""

    kind: Literal["stored"]
    is_stored: ClassVar[bool] = True

    def room(self, sequence_tokens: int) -> tuple[int, int]:
        """Any tokens, in spans of eight at least."""
        return sequence_tokens, max(1, sequence_tokens // 8)

    def load(self, sequence_tokens: int) -> None:
        """Not known."""

    def choose(
        self, sample: Sample, *, seed: int, epoch: int, choice: int, special: SpecialTokens
    ) -> Spans:
        """The sample's own spans."""
        return NO_SPANS if sample.spans is None else sample.spans
