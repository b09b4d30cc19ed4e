"""Samples and their spans become one microbatch of static shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from model.batch import UNSCORED, Batch, PackedSpans
from model.encoders.text import TextSpans
from train.data.sample import Sample
from train.data.spans.kinds import SpanPolicy
from train.data.spans.places import Spans
from train.errors import DataError

Ints = npt.NDArray[np.int64]

Attend = Literal["across", "within"]
"""Whether slots see what lies before them in the sequence, as in the paper, or in the document."""


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
        attend: `within` keeps the documents that a sample was packed from apart: each trains as
            it would in a sequence of its own. Each must then begin with its own `<s>`, which is
            no target; a sample that names no documents is one.
    """

    def __init__(
        self,
        *,
        sequence_tokens: int,
        policies: dict[str, SpanPolicy],
        capacities: dict[str, SpanCapacity],
        start_tokens: dict[str, int],
        padding: int,
        attend: Attend = "across",
    ):
        self.sequence_tokens = sequence_tokens
        self.policies = policies
        self.capacities = capacities
        self.start_tokens = start_tokens
        self.padding = padding
        self.attend: Attend = attend

    def __call__(
        self, samples: Sequence[tuple[int, Sample]], *, choices: Sequence[int] | None = None
    ) -> Batch:
        """Collate (epoch, sample) pairs.

        Args:
            samples: B pairs.
            choices: which choice of spans of each; the first where None.

        Raises:
            DataError: a sample is longer than S + 1 tokens, its spans make no sense, or they
                exceed the capacity.
        """
        B, S = len(samples), self.sequence_tokens
        # Fresh pages are what a large batch costs: few arrays, and each written once.
        tokens = np.full((B, S), self.padding, dtype=np.int64)
        labels = np.full((B, S), UNSCORED, dtype=np.int64)
        targets = np.zeros((B, S), dtype=np.bool_)
        for row, (_, sample) in enumerate(samples):
            length = len(sample.tokens)
            if length > S + 1:
                raise DataError(
                    f"sample {sample.id} has {length} tokens but sequences have {S} slots: "
                    "rebuild the corpus with this sequence length"
                )
            tokens[row, :length] = sample.tokens[:S]
            last = max(0, length - 1)
            labels[row, :last] = sample.tokens[1:]
            targets[row, :last] = True if sample.scored is None else sample.scored[1:]
        documents = self._documents(samples, targets) if self.attend == "within" else None
        first = np.zeros((B, S), dtype=np.bool_)
        spans: dict[str, PackedSpans] = {}
        for modality, policy in self.policies.items():
            chosen = [
                policy.choose(sample, epoch=epoch, choice=choices[row] if choices else 0)
                for row, (epoch, sample) in enumerate(samples)
            ]
            owners, starts, lengths = _flat(chosen)
            _refuse_senseless(samples, documents, owners, starts, lengths)
            _refuse_oversize(samples, self.capacities[modality], owners, lengths)
            # A span's first token is predicted from the slot before it; its others from none.
            slots = owners * S + starts
            first.reshape(-1)[slots - 1] = True
            targets.reshape(-1)[_runs(slots, lengths - 1)] = False
            spans[modality] = pack_spans(
                tokens,
                chosen,
                capacity=self.capacities[modality],
                start_token=self.start_tokens[modality],
            )
        np.copyto(labels, UNSCORED, where=~targets)
        scored = np.flatnonzero(targets)
        first_of_span = np.zeros(B * S, dtype=np.bool_)
        first_of_span[: len(scored)] = first[targets]
        return Batch(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            scored=_padded(scored, B * S),
            num_scored=len(scored),
            first_of_span=torch.from_numpy(first_of_span),
            spans=spans,
            segment_ids=None if documents is None else torch.from_numpy(documents.ids),
            positions=None if documents is None else torch.from_numpy(documents.positions),
        )

    def _documents(
        self, samples: Sequence[tuple[int, Sample]], targets: npt.NDArray[np.bool_]
    ) -> "_Documents":
        """Which document each slot belongs to; no slot then predicts what is not in its own."""
        ids = np.full(targets.shape, -1, dtype=np.int64)
        positions = np.zeros(targets.shape, dtype=np.int64)
        S = self.sequence_tokens
        count = np.arange(S)
        for row, (_, sample) in enumerate(samples):
            whole = [[0, len(sample.tokens)]]
            ranges = whole if sample.documents is None else sample.documents.tolist()
            inside = np.zeros(S, dtype=np.bool_)
            for number, (start, stop) in enumerate(ranges):
                ids[row, start:stop] = number
                positions[row, start:stop] = count[: min(stop, S) - start]
                inside[start : stop - 1] = True
            targets[row] &= inside
        return _Documents(ids, positions)


@dataclass(frozen=True)
class _Documents:
    """[B, S] each: number of a slot's document in its row, -1 on padding; place in it."""

    ids: Ints
    positions: Ints


def _flat(chosen: Sequence[Spans]) -> tuple[Ints, Ints, Ints]:
    """[K] each: row, first token and length of every span of a batch."""
    owners = np.repeat(np.arange(len(chosen)), [len(spans) for spans in chosen])
    spans = np.concatenate(chosen)
    return owners, spans[:, 0], spans[:, 1] - spans[:, 0]


def _runs(starts: Ints, lengths: Ints) -> Ints:
    """All numbers of the runs that begin at `starts`, one run after the other."""
    before = lengths.cumsum() - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _refuse_senseless(
    samples: Sequence[tuple[int, Sample]],
    documents: _Documents | None,
    owners: Ints,
    starts: Ints,
    lengths: Ints,
) -> None:
    # A slot past the end would be the next sequence's; slot 0 holds <s>.
    stops = starts + lengths
    most = np.array([len(sample.tokens) - 1 for _, sample in samples])
    wrong = (starts < 1) | (lengths < 1) | (stops > most[owners])
    wrong[1:] |= (owners[1:] == owners[:-1]) & (starts[1:] < stops[:-1])
    if wrong.any():
        row = int(owners[wrong.argmax()])
        raise DataError(
            f"sample {samples[row][1].id} has spans {_listed(row, owners, starts, stops)}, which "
            f"must rise, not overlap, hold a token each and lie in slots 1 to {most[row] - 1}: "
            "rebuild the corpus with spans inside its sequences"
        )
    if documents is None:
        return
    crossing = documents.ids[owners, starts] != documents.ids[owners, stops - 1]
    if crossing.any():
        row = int(owners[crossing.argmax()])
        raise DataError(
            f"sample {samples[row][1].id} has spans {_listed(row, owners, starts, stops)}, but "
            "with data.attend=within each must lie in one document: rebuild the corpus, or use "
            "data.attend=across"
        )


def _listed(row: int, owners: Ints, starts: Ints, stops: Ints) -> list[list[int]]:
    mine = owners == row
    return np.stack([starts[mine], stops[mine]], axis=1).tolist()


def _refuse_oversize(
    samples: Sequence[tuple[int, Sample]], capacity: SpanCapacity, owners: Ints, lengths: Ints
) -> None:
    B = len(samples)
    longest = np.zeros(B, dtype=np.int64)
    np.maximum.at(longest, owners, lengths)
    for have, room, what in (
        (np.bincount(owners, lengths, minlength=B), capacity.tokens, "tokens in spans"),
        (np.bincount(owners, minlength=B), capacity.spans, "spans"),
        (longest, capacity.longest_tokens, "tokens in one span"),
    ):
        row = int((have > room).argmax())
        if have[row] > room:
            raise DataError(
                f"sample {samples[row][1].id} has {int(have[row])} {what} but there is room for "
                f"{room}: raise data.span_capacity (or the encoder's max_tokens), or leave the "
                "document out"
            )


def pack_spans(
    tokens: Ints, chosen: Sequence[Spans], *, capacity: SpanCapacity, start_token: int
) -> TextSpans:
    """Pack the spans of B sequences row after row, each behind a start token.

    Args:
        tokens: [B, S].
        chosen: spans of each sequence.
        capacity: room in one sequence; arrays have B times as much.
        start_token: token that opens each span.
    """
    B, S = tokens.shape
    owners, starts, lengths = _flat(chosen)
    slots = _runs(owners * S + starts, lengths)
    words = tokens.reshape(-1)[slots]
    if not len(owners):
        # The padding span: one token whose vector goes to the bin slot B * S.
        lengths, slots, words = np.array([1]), np.array([B * S]), np.array([start_token])
    longest = int(lengths.max()) + 1
    positions = _runs(np.zeros_like(lengths), lengths + 1)
    rows = np.full(len(positions), start_token, dtype=np.int64)
    vectors = np.flatnonzero(positions)
    rows[vectors] = words
    cells = np.repeat(np.arange(len(lengths)) * longest, lengths + 1) + positions
    room_vectors = max(B * capacity.tokens, len(vectors))
    room_rows = max(B * (capacity.tokens + capacity.spans), len(rows))
    return TextSpans(
        tokens=_padded(rows, room_rows),
        positions=_padded(positions, room_rows),
        cells=_padded(cells, room_rows),
        vectors=_padded(vectors, room_vectors),
        slots=_padded(slots, room_vectors, B * S),
        num_rows=len(rows),
        num_vectors=len(vectors),
        num_spans=len(lengths),
        longest_rows=longest,
    )


def _padded(values: Ints, room: int, filler: int = 0) -> torch.Tensor:
    if len(values) == room:
        return torch.from_numpy(values)
    padded = np.full(room, filler, dtype=np.int64)
    padded[: len(values)] = values
    return torch.from_numpy(padded)
