"""Makes documents fit a model: spans that its encoder can read, in a sequence of its decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from tokenizers import Tokenizer

from train.data.segments import TextSegment
from train.errors import DataError

_ENDS: Final = 2
"""`<s>` and `</d>`."""
_LEAST_SPAN: Final = 5
"""Tokens of a span that is not shortened further: a character may take four, and `</s>` follows."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What a model has room for.

    Attributes:
        tokenizer: of the model's corpus.
        span_tokens: longest span that the encoder reads; None where there is no encoder.
        sequence_tokens: of a sequence.
    """

    tokenizer: Tokenizer
    span_tokens: int | None
    sequence_tokens: int

    def __call__(
        self, context: Sequence[TextSegment], answer: Sequence[TextSegment], *, name: str
    ) -> tuple[tuple[TextSegment, ...], int]:
        """A context that leaves room for its answer.

        A span longer than the encoder reads becomes several, one behind the other. Where all
        together exceed the sequence, the end of the longest span is dropped, and of the next: what
        is asked and answered stays whole.

        Args:
            context: what is given.
            answer: what follows; of several, the longest.
            name: of the record, for messages.

        Returns:
            The context, and how many tokens of it were dropped.

        Raises:
            DataError: answer, or context without spans, exceed the sequence.
        """
        sizes = [self._size(segment) for segment in context]
        answer_tokens = sum(map(self._size, answer))
        room = self.sequence_tokens - answer_tokens - _ENDS
        if room < 0:
            raise DataError(
                f"{name}: the answer has {answer_tokens} tokens, and a sequence "
                f"{self.sequence_tokens}: take longer sequences, or leave such records out"
            )
        spans = [at for at, segment in enumerate(context) if segment.is_span]
        room -= sum(sizes)
        kept = {at: sizes[at] for at in spans}
        while room < 0:
            longest = max(spans, key=lambda at: kept[at], default=None)
            if longest is None or kept[longest] <= _LEAST_SPAN:
                raise DataError(
                    f"{name}: what is asked and answered has more than the {self.sequence_tokens} "
                    "tokens of a sequence: take longer sequences, or leave such records out"
                )
            kept[longest] -= 1
            room += 1
        found: list[TextSegment] = []
        for at, segment in enumerate(context):
            found += self._cut(segment, kept[at] - 1) if at in kept else [segment]
        return tuple(found), sum(sizes[at] - kept[at] for at in spans)

    def _size(self, segment: TextSegment) -> int:
        """Tokens of a segment, at most: paragraphs end with one each."""
        ends = 1 if segment.is_span else 1 + segment.text.count("\n\n")
        return len(self.tokenizer.encode(segment.text, add_special_tokens=False)) + ends

    def _cut(self, span: TextSegment, most: int) -> list[TextSegment]:
        """The first tokens of a span, as spans that the encoder can read."""
        offsets = self.tokenizer.encode(span.text, add_special_tokens=False).offsets
        longest = self.span_tokens or most
        if len(offsets) <= min(most, longest):
            return [span]
        # Several tokens may spell one character, which stays whole.
        ends = [
            end
            for end in range(1, min(most, len(offsets)) + 1)
            if end == len(offsets) or offsets[end][0] >= offsets[end - 1][1]
        ]
        bounds = [0]
        for end, following in pairwise([*ends, most + longest + 1]):
            if following - bounds[-1] > longest:
                bounds.append(end)
        # Where offsets leave out the space that a word's token begins with, it is between them.
        places = [0, *(offsets[end - 1][1] for end in bounds[1:])]
        parts = [
            replace(span, text=span.text[begin:end], ends_paragraph=False)
            for begin, end in pairwise(places)
        ]
        return [*parts[:-1], replace(parts[-1], ends_paragraph=span.ends_paragraph)]
