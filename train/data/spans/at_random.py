"""Spans at random, as in the paper."""

import math
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from model.config import MOST_TOKENS, Tokens
from model.encoders.protocol import SpanLoad
from train.data.sample import Sample
from train.data.spans.places import NO_SPANS, Range, Spans, around_items, generator, places
from train.data.spans.text import TextSpansConfig
from train.data.tokens import SpecialTokens

Ratio = Annotated[float, Field(ge=0, le=0.75)]


class RandomSpansConfig(TextSpansConfig):
    """Spans of random length at random places, filling `ratio` of the slots to the token.

    The paper says: lengths between 64 and 128, 25 % of the sequence, never across documents,
    number and places random. Lengths are drawn first, until they fill the budget exactly (so the
    ratio means what it says at every sequence length, which drawing cells does not achieve), then
    each is placed uniformly among the places still free within one document.

    Source: MetaLM §3.2.
    """

    kind: Literal["random"] = "random"
    ratio: Ratio = 0.25
    """Share of a sequence's slots that spans fill; 0 makes the model a GPT."""
    ratio_by_tokens: (
        Annotated[
            list[
                Annotated[
                    list[Annotated[float, Field(ge=-1, le=MOST_TOKENS)]],
                    Field(min_length=2, max_length=2),
                ]
            ],
            Field(min_length=1),
        ]
        | None
    ) = None
    """Instead of `ratio`, [tokens, ratio] pairs in rising order of tokens, such as
    [[256, 0.1], [1024, 0.25]]: the share of a document, or of its part in a sequence, by its
    length; linear between pairs and constant beyond them. Spans are then placed document by
    document, each as if it were the sequence."""
    min_tokens: Annotated[Tokens, Field(ge=2)] = 64
    """Shortest span at `full_sequence_tokens` and beyond; scaled down on shorter sequences."""
    max_tokens: Annotated[Tokens, Field(ge=2)] = 128
    """Longest span."""
    full_sequence_tokens: Annotated[Tokens, Field(ge=2)] = 1024
    """Sequence length from which spans have their full length."""

    @model_validator(mode="after")
    def _ordered(self) -> "RandomSpansConfig":
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens: must not exceed max_tokens")
        points = self.ratio_by_tokens or []
        if any(a[0] >= b[0] for a, b in pairwise(points)):
            raise ValueError("ratio_by_tokens: must rise in tokens")
        if any(not 0 <= ratio <= 0.75 for _, ratio in points):
            raise ValueError("ratio_by_tokens: a ratio must lie between 0 and 0.75")
        return self

    @property
    def largest_ratio(self) -> float:
        """Share of the longest or shortest documents, whichever is larger."""
        if self.ratio_by_tokens is None:
            return self.ratio
        return max(ratio for _, ratio in self.ratio_by_tokens)

    def ratio_of(self, document_tokens: int) -> float:
        """Share of a document of this length."""
        if self.ratio_by_tokens is None:
            return self.ratio
        tokens, ratios = zip(*self.ratio_by_tokens, strict=True)
        return float(np.interp(document_tokens, tokens, ratios))

    def room(self, sequence_tokens: int) -> tuple[int, int]:
        """Tokens and spans to have room for, a quarter more than asked: 640 and 10 at 2,048, 25 %.

        Spans of short documents are short, so there may be many.
        """
        shortest, longest = self.lengths(sequence_tokens)
        tokens = max(longest, math.ceil(1.25 * self.largest_ratio * sequence_tokens))
        return tokens, math.ceil(tokens / (2 if self.ratio_by_tokens else shortest))

    @property
    def is_idle(self) -> bool:
        """At ratio 0."""
        return self.largest_ratio == 0

    def load(self, sequence_tokens: int) -> SpanLoad:
        """The largest ratio, in spans of the mean length."""
        shortest, longest = self.lengths(sequence_tokens)
        vectors = self.largest_ratio * sequence_tokens
        return SpanLoad(
            vectors=vectors, spans=vectors / ((shortest + longest) / 2), longest=longest
        )

    def lengths(self, sequence_tokens: int) -> tuple[int, int]:
        """Shortest and longest span in a sequence of this many slots."""
        scale = min(1.0, sequence_tokens / self.full_sequence_tokens)
        # Rounded up, and 3 at least: every budget is then a sum of lengths from here to there.
        longest = min(self.max_tokens, max(3, math.ceil(self.max_tokens * scale)))
        return max(2, min(longest, round(self.min_tokens * scale))), longest

    def shortfall(self, sequence_tokens: int) -> str | None:
        """That whole sequences, or documents, are not filled as asked: a sentence, its key first.

        Lengths close to each other leave rests that no span fills, in the ratio and between places.
        Documents that share a sequence leave more of them, of which this knows nothing.
        """
        key, what, sizes = "ratio", "{} slots", [sequence_tokens]
        if self.ratio_by_tokens is not None:
            key, what = "ratio_by_tokens", "a document of {} tokens"
            within = {min(int(tokens), sequence_tokens) for tokens, _ in self.ratio_by_tokens}
            sizes = sorted({*within, sequence_tokens})[-8:]
        reached, size = min((self._reached(size, 1 / len(sizes)), size) for size in sizes)
        if reached >= 0.96:
            return None
        ratio = self.ratio_of(size)
        shortest, longest = self.lengths(size)
        return (
            f"{key}: {ratio:.3g} of {what.format(size)} is not reached by spans of {shortest} to "
            f"{longest} tokens, which fill about {ratio * reached:.3g} of it: lower it, or "
            "min_tokens"
        )

    def _reached(self, slots: int, effort: float) -> float:
        """Share of what is asked of so many slots that drawn spans fill, in 0.1 s at most."""
        shortest, longest = self.lengths(slots)
        tokens = self.ratio_of(slots) * slots
        longest = max(shortest, min(longest, math.ceil(tokens)))
        if slots < 4 or tokens == 0:
            return 1
        # One span or none is right on average; lengths that differ by much reach 98 % and more.
        if shortest < slots and (tokens <= shortest or longest >= 4 * shortest):
            return 1
        # Long spans are tried as shorter ones of shorter sequences, many spans as 50 of them.
        scale = min(1, 256 / longest)
        shrink = scale * min(1, 50 * longest / tokens)
        shortest, longest = max(2, round(shortest * scale)), max(2, round(longest * scale))
        slots, tokens = math.ceil(slots * shrink), tokens * shrink
        tries = max(10, min(300, int(effort * 3000 * shortest / tokens)))
        placed = 0
        for seed in range(tries):
            random = np.random.Generator(np.random.Philox(seed))
            spans = _fill(random, [(1, slots)], tokens, shortest, longest)
            placed += sum(stop - start for start, stop in spans)
        return placed / tries / tokens

    def choose(
        self, sample: Sample, *, seed: int, epoch: int, choice: int, special: SpecialTokens
    ) -> Spans:
        """Spans of one sample; documents too short for any span leave the budget unfilled."""
        slots = len(sample.tokens) - 1 - sum(item.stop - item.start for item in sample.items)
        if self.largest_ratio == 0 or slots < 4:
            return NO_SPANS
        random = generator(seed, epoch, sample, choice)
        free = [around_items(place, sample) for place in places(sample, special)]
        if self.ratio_by_tokens is None:
            pieces = [piece for of_document in free for piece in of_document]
            spans = _fill(random, pieces, self.ratio * slots, *self.lengths(slots))
        else:
            spans = self._by_document(random, free, room=self.room(slots)[0])
        return np.array(sorted(spans), dtype=np.int64).reshape(-1, 2)

    def _by_document(
        self, random: np.random.Generator, free: list[list[Range]], *, room: int
    ) -> list[Range]:
        spans: list[Range] = []
        for pieces in free:
            tokens = sum(stop - start for start, stop in pieces)
            if not tokens:
                continue
            budget = self.ratio_of(tokens) * tokens
            found = _fill(random, pieces, budget, *self.lengths(tokens))
            room -= sum(b - a for a, b in found)
            if room < 0:
                break  # each rounds its budget for itself; all of them up is too many
            spans += found
        return spans


def _fill(
    random: np.random.Generator, free: list[Range], tokens: float, shortest: int, longest: int
) -> list[Range]:
    """Random spans of so many tokens, or of the most that fit, in the order in which they are set.

    How often and for what `random` is asked must stay as it is: runs go on under later versions.
    """
    # Rounded at random, so that the ratio holds on average where a token is a large share.
    budget = int(tokens + random.random())
    lengths = _lengths(random, budget, shortest, longest)
    free = [(start, stop) for start, stop in free if stop - start >= shortest]
    spans: list[Range] = []
    left_over = 0
    for length in sorted(lengths, reverse=True):
        placed = _place(random, free, length, shortest)
        left_over += length
        if placed is not None:
            spans.append(placed)
            left_over -= placed[1] - placed[0]
    while left_over >= shortest:
        # What longer spans could not fill goes to shorter ones, as long as one fits.
        placed = _place(random, free, shortest, shortest)
        if placed is None:
            break
        spans.append(placed)
        left_over -= shortest
    return spans


def _lengths(random: np.random.Generator, budget: int, shortest: int, longest: int) -> list[int]:
    """Random lengths in [shortest, longest] that sum to the budget, or nearly on short ones."""
    if budget < shortest:
        # Too short for one span every time: one span, as often as the ratio on average allows.
        return [shortest] if random.random() < budget / shortest else []
    lengths: list[int] = []
    left = budget
    while left >= shortest:
        # A length that would leave an unusable rest is not drawn: leave 0 or at least `shortest`.
        last = min(longest, left - shortest)
        choices = [*range(shortest, last + 1), *([left] if left <= longest else [])]
        if not choices:
            choices = [longest]  # the bounds lie too close to divide the rest
        lengths.append(choices[random.integers(len(choices))])
        left -= lengths[-1]
    return lengths


def _place(
    random: np.random.Generator, free: list[Range], length: int, shortest: int
) -> Range | None:
    """Take a random place for `length` tokens, or for the longest that fits, out of `free`."""
    length = min(length, max((stop - start for start, stop in free), default=0))
    if length < shortest:
        return None
    counts = [max(0, stop - start - length + 1) for start, stop in free]
    chosen = int(random.integers(sum(counts)))
    run = 0
    while chosen >= counts[run]:
        chosen -= counts[run]
        run += 1
    first, last = free[run]
    start = first + chosen
    stop = start + length
    rest = [(first, start), (stop, last)]
    free[run : run + 1] = [(a, b) for a, b in rest if b - a >= shortest]
    return start, stop
