"""Spans of text: their encoder reads the sequence's own tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from model.config import Config
from model.encoders.protocol import EncoderKind
from model.encoders.text import TextEncoderConfig, TextSpans
from train.data.document import Kind
from train.data.sample import Sample
from train.data.spans.places import FlatSpans, Ints, Spans, padded, runs
from train.data.spans.protocol import Draw, SpanCapacity
from train.data.tokens import SpecialTokens


class TextSpansConfig(Config, ABC):
    """A way to choose spans of tokens.

    Each kind also says the `room` to leave for its spans and their `load` on average (None where
    documents bring them), both in a sequence of so many slots.
    """

    is_stored: ClassVar[bool] = False
    """Whether documents bring their spans, for which packing leaves room."""
    medium: ClassVar[Kind] = Kind.TEXT_SPAN
    prefix_tokens: ClassVar[int] = 0
    """As what documents store them."""

    @property
    def is_idle(self) -> bool:
        """Whether there never is a span: the model is then built without the encoder."""
        return False

    @abstractmethod
    def choose(
        self, sample: Sample, *, seed: int, epoch: int, choice: int, special: SpecialTokens
    ) -> Spans:
        """Spans of one sample, a pure function of the arguments."""

    def reader(
        self, encoder: EncoderKind, *, capacity: SpanCapacity, seed: int, special: SpecialTokens
    ) -> "TextReader":
        """What reads the spans for an encoder with which `faults` finds nothing wrong."""
        assert isinstance(encoder, TextEncoderConfig), "refused with the configuration"
        return TextReader(
            kind=self,
            seed=seed,
            special=special,
            capacity=capacity,
            start_token=encoder.start_token,
        )

    def faults(
        self, path: str, encoder: EncoderKind, *, sequence_tokens: int, longest_slots: int
    ) -> Iterator[str]:
        """What is wrong with it in a run, each with its key; as `MediaSpansConfig.faults`."""
        if not isinstance(encoder, TextEncoderConfig):
            yield (
                f"{path}.kind: spans of tokens, but the encoder is of kind {encoder.kind}: choose "
                "a kind of spans that it reads"
            )


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """Reads the sequence's own tokens where a kind of spans places them.

    Attributes:
        kind: chooses the spans.
        seed: of the run.
        special: ids of the special tokens.
        capacity: room in one sequence; each span takes a start row besides.
        start_token: token that opens each span.
    """

    kind: TextSpansConfig
    seed: int = 0
    special: SpecialTokens = field(default_factory=SpecialTokens)
    capacity: SpanCapacity
    start_token: int = 0

    def choose(self, sample: Sample, *, epoch: int, choice: int = 0) -> Spans:
        """What its kind chooses."""
        return self.kind.choose(
            sample, seed=self.seed, epoch=epoch, choice=choice, special=self.special
        )

    def pack(
        self,
        samples: Sequence[Sample],
        tokens: Ints,
        spans: FlatSpans,
        *,
        draws: Sequence[Draw] | None = None,
    ) -> TextSpans:
        """The spans row after row, each behind a start token; nothing of them is changed."""
        return pack_text(tokens, spans, capacity=self.capacity, start_token=self.start_token)


def pack_text(
    tokens: Ints, spans: FlatSpans, *, capacity: SpanCapacity, start_token: int
) -> TextSpans:
    """Pack the spans of B sequences row after row, each behind a start token.

    Args:
        tokens: [B, S].
        spans: of the sequences.
        capacity: room in one sequence; arrays have B times as much.
        start_token: token that opens each span.
    """
    B, S = tokens.shape
    lengths = spans.lengths
    slots = runs(spans.first_slots(S), lengths)
    words = tokens.reshape(-1)[slots]
    if not len(spans):
        # The padding span: one token whose vector goes to the bin slot B * S.
        lengths, slots, words = np.array([1]), np.array([B * S]), np.array([start_token])
    longest = int(lengths.max()) + 1
    positions = runs(np.zeros_like(lengths), lengths + 1)
    rows = np.full(len(positions), start_token, dtype=np.int64)
    vectors = np.flatnonzero(positions)
    rows[vectors] = words
    cells = np.repeat(np.arange(len(lengths)) * longest, lengths + 1) + positions
    room_vectors = max(B * capacity.tokens, len(vectors))
    room_rows = max(B * (capacity.tokens + capacity.spans), len(rows))
    return TextSpans(
        tokens=padded(rows, room_rows),
        positions=padded(positions, room_rows),
        cells=padded(cells, room_rows),
        vectors=padded(vectors, room_vectors),
        slots=padded(slots, room_vectors, B * S),
        num_rows=len(rows),
        num_vectors=len(vectors),
        num_spans=len(lengths),
        longest_rows=longest,
    )
