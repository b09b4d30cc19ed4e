"""Samples and their spans become one microbatch of static shape."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.batch import UNSCORED, Batch, TextSpans
from train.data.sample import Sample
from train.data.span_places import NO_SPANS, Spans
from train.data.spans import SpanPolicy
from train.errors import DataError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SpanCapacity:
    """Room for spans in one sequence; a microbatch of B sequences has B times as much.

    Attributes:
        tokens: span tokens (vectors) a sequence.
        spans: spans a sequence; each adds one start row.
        longest_tokens: tokens of the longest span an encoder can read.
    """

    tokens: int
    spans: int
    longest_tokens: int


def scored_tokens(sample: Sample, spans: Spans) -> npt.NDArray[np.bool_]:
    """[S + 1] which tokens are targets.

    Every token but the interior of a span: a span's first token is predicted, from the slot before
    it; the token after a span is predicted from the span's last vector. The interior is visible to
    the vectors it would be predicted from.

    Source: MetaLM §2.3, Eq. 1.
    """
    scored = np.ones(len(sample.tokens), dtype=np.bool_)
    if sample.scored is not None:
        scored &= sample.scored
    scored[0] = False
    for start, stop in spans:
        scored[start + 1 : stop] = False
    return scored


class Collator:
    """Builds microbatches of B sequences by S slots.

    Args:
        sequence_tokens: S.
        policies: how spans are chosen, by modality; empty for a GPT.
        capacities: room for them, by modality.
        start_tokens: token that opens a span, by modality.
        padding: token of slots beyond the end of a short sample; never scored.
    """

    def __init__(
        self,
        *,
        sequence_tokens: int,
        policies: dict[str, SpanPolicy],
        capacities: dict[str, SpanCapacity],
        start_tokens: dict[str, int],
        padding: int,
    ):
        self.sequence_tokens = sequence_tokens
        self.policies = policies
        self.capacities = capacities
        self.start_tokens = start_tokens
        self.padding = padding

    def __call__(self, samples: list[tuple[int, Sample]]) -> Batch:
        """Collate (epoch, sample) pairs.

        Raises:
            DataError: a sample is longer than S + 1 tokens, or its spans exceed the capacity.
        """
        S = self.sequence_tokens
        tokens = np.full((len(samples), S + 1), self.padding, dtype=np.int64)
        scored = np.zeros((len(samples), S + 1), dtype=np.bool_)
        first = np.zeros((len(samples), S + 1), dtype=np.bool_)
        chosen: dict[str, list[Spans]] = {modality: [] for modality in self.policies}
        for row, (epoch, sample) in enumerate(samples):
            length = len(sample.tokens)
            if length > S + 1:
                raise DataError(
                    f"sample {sample.id} has {length} tokens but sequences have {S} slots: "
                    "rebuild the corpus with this sequence length"
                )
            tokens[row, :length] = sample.tokens
            scored[row, :length] = scored_tokens(sample, NO_SPANS)
            for modality, policy in self.policies.items():
                spans = policy.choose(sample, epoch=epoch)
                self._refuse_senseless(sample, spans)
                self._refuse_oversize(sample, spans, self.capacities[modality])
                scored[row, :length] &= scored_tokens(sample, spans)
                first[row, spans[:, 0]] = True
                chosen[modality].append(spans)
        labels = np.where(scored[:, 1:], tokens[:, 1:], UNSCORED)
        slots = np.flatnonzero(scored[:, 1:])
        capacity = np.zeros(len(samples) * S, dtype=np.int64)
        capacity[: len(slots)] = slots
        first_of_span = np.zeros(len(samples) * S, dtype=np.bool_)
        first_of_span[: len(slots)] = first[:, 1:].reshape(-1)[slots]
        return Batch(
            tokens=torch.from_numpy(tokens[:, :-1].copy()),
            labels=torch.from_numpy(labels),
            scored=torch.from_numpy(capacity),
            num_scored=len(slots),
            first_of_span=torch.from_numpy(first_of_span),
            spans={
                modality: pack_spans(
                    tokens[:, :-1],
                    spans,
                    capacity=self.capacities[modality],
                    start_token=self.start_tokens[modality],
                )
                for modality, spans in chosen.items()
            },
        )

    @staticmethod
    def _refuse_senseless(sample: Sample, spans: Spans) -> None:
        # A slot past the end would be the next sequence's; slot 0 holds <s>.
        bounds = np.concatenate([[1], spans.reshape(-1), [len(sample.tokens) - 1]])
        if len(spans) and ((np.diff(bounds) < 0).any() or (spans[:, 0] >= spans[:, 1]).any()):
            raise DataError(
                f"sample {sample.id} has spans {spans.tolist()}, which must rise, not overlap, "
                f"hold a token each and lie in slots 1 to {len(sample.tokens) - 2}: rebuild the "
                "corpus with spans inside its sequences"
            )

    @staticmethod
    def _refuse_oversize(sample: Sample, spans: Spans, capacity: SpanCapacity) -> None:
        lengths = spans[:, 1] - spans[:, 0]
        for have, room, what in (
            (int(lengths.sum()), capacity.tokens, "tokens in spans"),
            (len(spans), capacity.spans, "spans"),
            (int(lengths.max(initial=0)), capacity.longest_tokens, "tokens in one span"),
        ):
            if have > room:
                raise DataError(
                    f"sample {sample.id} has {have} {what} but there is room for {room}: raise "
                    "data.span_capacity (or the encoder's max_tokens), or leave the document out"
                )


def pack_spans(
    tokens: Ints, chosen: list[Spans], *, capacity: SpanCapacity, start_token: int
) -> TextSpans:
    """Pack the spans of B sequences row after row, each behind a start token.

    Args:
        tokens: [B, S].
        chosen: spans of each sequence.
        capacity: room in one sequence; arrays have B times as much.
        start_token: token that opens each span.
    """
    B, S = tokens.shape
    owners = [(row, int(a), int(b)) for row, spans in enumerate(chosen) for a, b in spans]
    if owners:
        pieces = [tokens[row, a:b] for row, a, b in owners]
        slots = np.concatenate([np.arange(row * S + a, row * S + b) for row, a, b in owners])
    else:
        # The padding span: one token whose vector goes to the bin slot B * S.
        pieces = [np.array([start_token], dtype=np.int64)]
        slots = np.array([B * S], dtype=np.int64)
    lengths = np.array([len(piece) + 1 for piece in pieces])
    longest = int(lengths.max())
    starts = np.concatenate([[0], lengths.cumsum()[:-1]])
    num_rows = int(lengths.sum())
    positions = np.arange(num_rows) - np.repeat(starts, lengths)
    rows = np.full(num_rows, start_token, dtype=np.int64)
    vectors = np.flatnonzero(positions > 0)
    rows[vectors] = np.concatenate(pieces)
    cells = np.repeat(np.arange(len(pieces)), lengths) * longest + positions
    room_vectors = max(B * capacity.tokens, len(vectors))
    room_rows = max(B * (capacity.tokens + capacity.spans), num_rows)
    return TextSpans(
        tokens=_padded(rows, room_rows),
        positions=_padded(positions, room_rows),
        cells=_padded(cells, room_rows),
        vectors=_padded(vectors, room_vectors),
        slots=_padded(slots, room_vectors, B * S),
        num_rows=num_rows,
        num_vectors=len(vectors),
        num_spans=len(pieces),
        longest_rows=longest,
    )


def _padded(values: Ints, room: int, filler: int = 0) -> torch.Tensor:
    padded = np.full(room, filler, dtype=np.int64)
    padded[: len(values)] = values
    return torch.from_numpy(padded)
