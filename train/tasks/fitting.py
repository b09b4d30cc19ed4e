"""Makes documents fit a model: spans that its encoder can read, in a sequence of its decoder."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tokenizers import Tokenizer

from train.data.document import MEDIA, Kind
from train.data.segments import MediaSegment, Segment, TextSegment
from train.data.slots import Vectors
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
        vectors: slots of an item by its size, for each modality that an encoder reads.
    """

    tokenizer: Tokenizer
    span_tokens: int | None
    sequence_tokens: int
    vectors: Mapping[Kind, Vectors] = field(default_factory=dict[Kind, Vectors])

    def __call__(
        self, context: Sequence[Segment], answer: Sequence[Segment], *, name: str
    ) -> tuple[tuple[Segment, ...], int]:
        """A context that leaves room for its answer.

        A span longer than the encoder reads becomes several, one behind the other. Where all
        together exceed the sequence, the end of the longest span is dropped, and of the next: what
        is asked and answered stays whole, and so does an item.

        Args:
            context: what is given.
            answer: what follows; of several, the longest.
            name: of the record, for messages.

        Returns:
            The context, and how many tokens of it were dropped.

        Raises:
            DataError: answer, or context without spans, exceed the sequence; or no encoder reads
                an item.
        """
        sizes = [self._size(segment, name) for segment in context]
        answer_tokens = sum(self._size(segment, name) for segment in answer)
        room = self.sequence_tokens - answer_tokens - _ENDS
        if room < 0:
            raise DataError(
                f"{name}: the answer has {answer_tokens} tokens, and a sequence "
                f"{self.sequence_tokens}: take longer sequences, or leave such records out"
            )
        spans = {
            at: segment
            for at, segment in enumerate(context)
            if isinstance(segment, TextSegment) and segment.is_span
        }
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
        found: list[Segment] = []
        dropped = 0
        for at, segment in enumerate(context):
            if at not in kept:
                found.append(segment)
                continue
            pieces, num_used, num_left = self._cut(spans[at], kept[at] - 1 + room)
            if not pieces:
                raise DataError(
                    f"{name}: a character has more tokens than the encoder reads at a time "
                    f"({self.span_tokens}): leave such records out"
                )
            found += pieces
            dropped += num_left
            room -= max(0, num_used - (kept[at] - 1))
        return tuple(found), dropped

    def _size(self, segment: Segment, name: str) -> int:
        """Slots of a segment, at most: paragraphs end with one each."""
        if isinstance(segment, MediaSegment):
            if segment.kind not in self.vectors:
                medium = MEDIA[segment.kind]
                raise DataError(
                    f"{name}: no encoder is known that reads its {medium}: name a model that has "
                    f"one, as model.encoders.{medium} of its configuration"
                )
            try:
                return self.vectors[segment.kind](segment.size)
            except ValueError as error:
                raise DataError(f"{name} {error}") from error
        ends = 1 if segment.is_span else 1 + segment.text.count("\n\n")
        return len(self._offsets(segment.text)) + ends

    def _cut(self, span: TextSegment, most: int) -> tuple[list[TextSegment], int, int]:
        """The first tokens of a span, as spans that the encoder can read.

        A piece is encoded alone, and may have more tokens then than its text has in the span.

        Returns:
            The pieces, their tokens, and how many of the span are in none.
        """
        offsets = self._offsets(span.text)
        longest = self.span_tokens or most
        if len(offsets) <= min(most, longest):
            return [span], len(offsets), 0
        # Several tokens may spell one character, which stays whole.
        ends = [
            end
            for end in range(1, len(offsets) + 1)
            if end == len(offsets) or offsets[end][0] >= offsets[end - 1][1]
        ]
        pieces: list[TextSegment] = []
        begin = place = num_used = 0
        while begin < len(offsets):
            room = min(longest, most - num_used)
            at = bisect_right(ends, begin + room) - 1
            text, size = "", room + 1
            while at >= 0 and ends[at] > begin:
                # Where offsets leave out the space that a word's token begins with, it is between.
                text = span.text[place : offsets[ends[at] - 1][1]]
                if (size := len(self._offsets(text))) <= room:
                    break
                at -= 1
            if size > room:
                break
            pieces.append(replace(span, text=text, ends_paragraph=False))
            begin, place, num_used = ends[at], place + len(text), num_used + size
        if pieces:
            pieces[-1] = replace(pieces[-1], ends_paragraph=span.ends_paragraph)
        return pieces, num_used, len(offsets) - begin

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        return self.tokenizer.encode(text, add_special_tokens=False).offsets
