"""Spans by rule: whole segments of each document, such as its first paragraph."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from model.config import Tokens
from model.encoders.protocol import SpanLoad
from train.data.sample import Sample
from train.data.spans.places import NO_SPANS, Range, Spans, around_items, generator, places
from train.data.spans.text import TextSpansConfig
from train.data.tokens import SpecialTokens


class RuleSpansConfig(TextSpansConfig):
    """Segments of each document, chosen by a rule.

    A rule puts a document's segments into an order and takes from its beginning. Choice 0 starts
    with the first of them, choice 1 with the second, and so on around, so that a document with one
    segment that will do has one choice only.
    """

    kind: Literal["rules"]
    unit: Literal["paragraph", "block"] = "paragraph"
    """What a segment is: a paragraph (`</s>` ends one, and is in no span), or a run of
    `max_tokens` tokens, counted from the document's first; its last one may be shorter."""
    which: Literal["first", "last", "alternate", "longest", "random"]
    """One segment of each document, or every second one from its second on, or as many as the
    ratio has room for, at random. Segments below `min_tokens` are passed over."""
    ratio: Annotated[float, Field(gt=0, le=0.75)] = 0.5
    """Largest share of a document's tokens in spans: each keeps text that the decoder predicts."""
    min_tokens: Tokens = 8
    """Shortest span."""
    max_tokens: Tokens = 128
    """Longest span. Of a longer segment, or of one that the ratio has no room for, the encoder
    reads the beginning and the decoder goes on from there."""

    @model_validator(mode="after")
    def _ordered(self) -> "RuleSpansConfig":
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens: must not exceed max_tokens")
        return self

    def room(self, sequence_tokens: int) -> tuple[int, int]:
        """Most tokens in spans of such a sequence, and most spans."""
        tokens = max(1, int(self.ratio * sequence_tokens))
        return tokens, max(1, tokens // self.min_tokens)

    def load(self, sequence_tokens: int) -> SpanLoad:
        """As much as the ratio has room for, which documents need not fill, in mean lengths."""
        longest = max(1, min(self.max_tokens, int(self.ratio * sequence_tokens)))
        vectors = self.ratio * sequence_tokens
        shortest = longest if self.unit == "block" else min(self.min_tokens, longest)
        return SpanLoad(
            vectors=vectors, spans=vectors / ((shortest + longest) / 2), longest=longest
        )

    def choose(
        self, sample: Sample, *, seed: int, epoch: int, choice: int, special: SpecialTokens
    ) -> Spans:
        """Spans of one sample; documents whose segments are all too short have none."""
        random = generator(seed, epoch, sample, choice)
        spans: list[Range] = []
        for start, stop in places(sample, special):
            text = around_items((start, stop), sample)
            if not text or int(sample.tokens[text[0][0]]) == special.padding:
                continue
            segments = [
                piece
                for segment in self._segments(sample, start, stop, special.paragraph)
                for piece in around_items(segment, sample)
            ]
            room = int(self.ratio * sum(b - a for a, b in text))
            chosen = self._cut(self._wanted(segments, random, choice), room=room)
            spans += _leaving_targets(sample, start, stop + 1, chosen)
        return np.array(sorted(spans), dtype=np.int64).reshape(-1, 2) if spans else NO_SPANS

    def _segments(self, sample: Sample, start: int, stop: int, paragraph: int) -> list[Range]:
        """A document's segments in the order of reading, those too short included."""
        if self.unit == "block":
            size = self.max_tokens
            return [(a, min(a + size, stop)) for a in range(start, stop, size)]
        ends = start + np.flatnonzero(sample.tokens[start:stop] == paragraph)
        starts = [start, *(ends + 1).tolist()]
        segments = zip(starts, [*ends.tolist(), stop], strict=True)
        return [(a, b) for a, b in segments if a < b]

    def _wanted(
        self, segments: list[Range], random: np.random.Generator, choice: int
    ) -> list[Range]:
        """Those that the rule wants, the most wanted first."""
        which = self.which
        if which == "alternate":
            segments = segments[(1 + choice) % 2 :: 2]
        fit = [(a, b) for a, b in segments if b - a >= self.min_tokens]
        if which == "alternate" or not fit:
            return fit
        if which == "random":
            # Not `permutation`, whose draws numpy may change from release to release.
            return [fit[i] for i in np.argsort(random.random(len(fit)), kind="stable")]
        if which == "last":
            fit.reverse()
        elif which == "longest":
            fit.sort(key=lambda segment: segment[0] - segment[1])
        return [fit[choice % len(fit)]]

    def _cut(self, segments: list[Range], *, room: int) -> list[Range]:
        """As many as there is room for, each cut to what an encoder reads at a time."""
        chosen: list[Range] = []
        for start, stop in segments:
            stop = min(stop, start + min(self.max_tokens, room))
            if stop - start < self.min_tokens:
                break
            chosen.append((start, stop))
            room -= stop - start
        return chosen


def _leaving_targets(sample: Sample, start: int, stop: int, chosen: list[Range]) -> list[Range]:
    """Without the least wanted spans, where a task scores nothing outside of all of them."""
    if sample.scored is None:
        return chosen  # the ratio leaves some
    chosen = list(chosen)
    targets = sample.scored.copy()
    for a, b in chosen:
        targets[a:b] = False
    while chosen and not targets[start:stop].any():
        a, b = chosen.pop()
        targets[a:b] = sample.scored[a:b]
    return chosen
