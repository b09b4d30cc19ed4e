"""Which parts of a sequence the encoder reads: pure functions of (seed, epoch, sample).

Every way of choosing spans answers the same question, `SpanPolicy.choose`, so that a task, a rule
or a sampler can stand in for another.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from model.config import Config
from train.data.sample import Sample

Spans = npt.NDArray[np.int64]
"""[k, 2] half-open ranges in rising order, without overlap."""

NO_SPANS: Spans = np.zeros((0, 2), dtype=np.int64)


class RandomSpansConfig(Config):
    """Random spans as in the paper (MetaLM §3.2)."""

    kind: Literal["random"] = "random"
    ratio: Annotated[float, Field(ge=0, le=0.75)] = 0.25
    """Share of a sequence's slots that spans fill; 0 makes the model a GPT."""
    min_tokens: Annotated[int, Field(ge=2)] = 64
    """Shortest span at `full_sequence_tokens` and beyond; scaled down on shorter sequences."""
    max_tokens: Annotated[int, Field(ge=2)] = 128
    """Longest span."""
    full_sequence_tokens: Annotated[int, Field(ge=2)] = 1024
    """Sequence length from which spans have their full length."""

    @model_validator(mode="after")
    def _ordered(self) -> "RandomSpansConfig":
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not exceed max_tokens")
        return self

    def lengths(self, sequence_tokens: int) -> tuple[int, int]:
        """Shortest and longest span in a sequence of this many slots."""
        scale = min(1.0, sequence_tokens / self.full_sequence_tokens)
        # Rounded up, and 3 at least: every budget is then a sum of lengths from here to there.
        longest = min(self.max_tokens, max(3, math.ceil(self.max_tokens * scale)))
        return max(2, min(longest, round(self.min_tokens * scale))), longest


class FixedSpansConfig(Config):
    """The same spans in every sequence; for tests and for comparisons on the same tokens."""

    kind: Literal["fixed"]
    ranges: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    """Half-open [start, stop] pairs in rising order."""

    @model_validator(mode="after")
    def _ordered(self) -> "FixedSpansConfig":
        bounds = [bound for pair in self.ranges for bound in pair]
        rising = all(a <= b for a, b in pairwise(bounds))
        if not rising or any(start >= stop for start, stop in self.ranges):
            raise ValueError("ranges must rise, not overlap, and hold at least one token each")
        if bounds and bounds[0] < 1:
            raise ValueError("a span cannot start at slot 0, which holds <s>")
        return self


class StoredSpansConfig(Config):
    """The spans that the task stored with each sample, by its own rule."""

    kind: Literal["stored"]


SpansConfig = Annotated[
    RandomSpansConfig | FixedSpansConfig | StoredSpansConfig, Field(discriminator="kind")
]


class SpanPolicy(Protocol):
    """Chooses the spans of a sample."""

    def choose(self, sample: Sample, *, epoch: int) -> Spans:
        """Spans of `sample` in `epoch`: the same on every rank and after every restart."""
        ...


class FixedSpans:
    """The same ranges always, those beyond the end of a sample left out."""

    def __init__(self, ranges: list[list[int]]):
        self._spans = np.array(ranges, dtype=np.int64).reshape(-1, 2)

    def choose(self, sample: Sample, *, epoch: int) -> Spans:
        """The configured ranges that lie inside the sample's slots."""
        return self._spans[self._spans[:, 1] < len(sample.tokens)]


class StoredSpans:
    """What the shard says."""

    def choose(self, sample: Sample, *, epoch: int) -> Spans:
        """The sample's own spans."""
        return NO_SPANS if sample.spans is None else sample.spans


class RandomSpans:
    """Spans of random length at random places, filling `ratio` of the slots to the token.

    The paper says: lengths between 64 and 128, 25 % of the sequence, never across documents,
    number and places random. Lengths are drawn first, until they fill the budget exactly (so the
    ratio means what it says at every sequence length, which drawing cells does not achieve), then
    each is placed uniformly among the places still free within one document.
    """

    def __init__(self, config: RandomSpansConfig, *, seed: int, document_end: int):
        self.config = config
        self.seed = seed
        self.document_end = document_end

    def choose(self, sample: Sample, *, epoch: int) -> Spans:
        """Spans of one sample; documents too short for any span leave the budget unfilled."""
        slots = len(sample.tokens) - 1
        if self.config.ratio == 0 or slots < 4:
            return NO_SPANS
        random = np.random.default_rng([self.seed, epoch, sample.id])
        shortest, longest = self.config.lengths(slots)
        # Rounded at random, so that the ratio holds on average where a token is a large share.
        budget = int(self.config.ratio * slots + random.random())
        lengths = _lengths(random, budget, shortest, longest)
        return self._place(random, sample, lengths, shortest)

    def _place(
        self, random: np.random.Generator, sample: Sample, lengths: list[int], shortest: int
    ) -> Spans:
        slots = len(sample.tokens) - 1
        free = np.ones(slots + 1, dtype=np.int64)
        # Slot 0 holds <s>; a document's end token belongs to no span; slot `slots` is no slot.
        free[0] = free[slots] = 0
        free[np.flatnonzero(sample.tokens[:slots] == self.document_end)] = 0
        spans: list[tuple[int, int]] = []
        left_over = 0
        for length in sorted(lengths, reverse=True):
            start, stop = _fit(random, free, length, shortest)
            left_over += length - (stop - start)
            if stop > start:
                free[start:stop] = 0
                spans.append((start, stop))
        while left_over >= shortest:
            # What longer spans could not fill goes to shorter ones, as long as one fits.
            start, stop = _fit(random, free, min(left_over, shortest), shortest)
            if stop == start:
                break
            free[start:stop] = 0
            spans.append((start, stop))
            left_over -= stop - start
        return np.array(sorted(spans), dtype=np.int64).reshape(-1, 2)


def _lengths(random: np.random.Generator, budget: int, shortest: int, longest: int) -> list[int]:
    """Random lengths in [shortest, longest] that sum to the budget, or nearly on short ones."""
    if budget < shortest:
        # Too short for one span every time: one span, as often as the ratio on average allows.
        return [shortest] if random.random() < budget / shortest else []
    lengths: list[int] = []
    left = budget
    while left >= shortest:
        # A length that would leave an unusable rest is not drawn: leave 0 or at least `shortest`.
        choices = [
            length
            for length in range(shortest, min(longest, left) + 1)
            if left == length or left - length >= shortest
        ]
        if not choices:
            choices = [min(left, longest)]  # the bounds lie too close to divide the rest
        lengths.append(int(random.choice(choices)))
        left -= lengths[-1]
    return lengths


def _fit(
    random: np.random.Generator, free: npt.NDArray[np.int64], length: int, shortest: int
) -> tuple[int, int]:
    """A random free place for `length` tokens, or for the longest that fits; (0, 0) if none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free, [0]])))
    starts, stops = edges[::2], edges[1::2]
    longest_run = int((stops - starts).max(initial=0))
    length = min(length, longest_run)
    if length < shortest:
        return 0, 0
    places = np.maximum(stops - starts - length + 1, 0)
    cumulative = places.cumsum()
    chosen = int(random.integers(cumulative[-1]))
    run = int(np.searchsorted(cumulative, chosen, side="right"))
    start = int(starts[run] + chosen - (cumulative[run] - places[run]))
    return start, start + length


def build_policy(config: SpansConfig, *, seed: int, document_end: int) -> SpanPolicy:
    """The policy that a configuration names."""
    match config:
        case RandomSpansConfig():
            return RandomSpans(config, seed=seed, document_end=document_end)
        case FixedSpansConfig():
            return FixedSpans(config.ranges)
        case StoredSpansConfig():
            return StoredSpans()
