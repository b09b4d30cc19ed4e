"""Samples and their spans become one microbatch of static shape."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from model.batch import UNSCORED, Batch, PackedSpans
from train.data.masks.protocol import Masking
from train.data.sample import Sample
from train.data.spans.places import FlatSpans, Ints, padded
from train.data.spans.protocol import Draw, SpanCapacity, SpanReader
from train.data.spans.scoring import Documents, scored_slots
from train.errors import DataError

Attend = Literal["across", "within"]
"""Whether slots see what lies before them in the sequence, as in the paper, or in the document."""


class Collator:
    """Builds microbatches of B sequences by S slots.

    Args:
        sequence_tokens: S.
        readers: what chooses spans and packs them, by modality; empty for a GPT.
        padding: token of slots beyond the end of a short sample; never scored.
        attend: `within` trains each document of a sample as if it were alone in a sequence. Each
            document must then begin with `<s>`, which is never scored. A sample whose `documents`
            is None is one document.
        num_sources: of which samples come.
        masking: of spans of an encoder that trains alone; None where a decoder reads the slots.
    """

    def __init__(
        self,
        *,
        sequence_tokens: int,
        readers: Mapping[str, SpanReader],
        padding: int,
        attend: Attend = "across",
        num_sources: int = 1,
        masking: Masking | None = None,
    ):
        self.sequence_tokens = sequence_tokens
        self.readers = readers
        self.padding = padding
        self.attend: Attend = attend
        self.masking = masking
        self._num_sources = num_sources

    def __call__(
        self,
        pairs: Sequence[tuple[int, Sample]],
        *,
        choices: Sequence[int] | None = None,
        trains: bool = False,
    ) -> Batch:
        """Collate (epoch, sample) pairs.

        Args:
            pairs: B of them.
            choices: which choice of spans of each; the first where None.
            trains: whether items are changed at random, as their kind of spans says.

        Raises:
            DataError: a sample is longer than S + 1 tokens, its spans make no sense, or they
                exceed the capacity.
        """
        B, S = len(pairs), self.sequence_tokens
        samples = [sample for _, sample in pairs]
        draws = [
            Draw(epoch, choice)
            for (epoch, _), choice in zip(pairs, choices or [0] * B, strict=True)
        ]
        # Fresh pages are what a large batch costs: few arrays, and each written once.
        tokens = np.full((B, S), self.padding, dtype=np.int64)
        labels = np.full((B, S), UNSCORED, dtype=np.int64)
        for row, sample in enumerate(samples):
            length = len(sample.tokens)
            if length > S + 1:
                raise DataError(
                    f"sample {sample.id} has {length} tokens but sequences have {S} slots: "
                    "set data.sequence_tokens to what this sample was made for"
                )
            tokens[row, :length] = sample.tokens[:S]
            labels[row, : max(0, length - 1)] = sample.tokens[1:]
        documents = Documents.of(samples, S) if self.attend == "within" else None
        first = np.zeros((B, S), dtype=np.bool_)
        chosen: dict[str, FlatSpans] = {}
        packed: dict[str, PackedSpans] = {}
        for modality, reader in self.readers.items():
            spans = FlatSpans.of(
                [
                    reader.choose(sample, epoch=draw.epoch, choice=draw.choice)
                    for sample, draw in zip(samples, draws, strict=True)
                ]
            )
            _refuse_senseless(samples, documents, spans)
            _refuse_oversize(samples, reader.capacity, spans)
            first.reshape(-1)[spans.first_slots(S) - 1] = True
            chosen[modality] = spans
            packed[modality] = reader.pack(samples, tokens, spans, draws=draws if trains else None)
        if len(chosen) > 1:
            _refuse_overlapping(samples, S, chosen)
        targets = scored_slots(samples, S, spans=chosen.values(), documents=documents)
        np.copyto(labels, UNSCORED, where=~targets)
        scored = np.flatnonzero(targets)
        first_of_span = np.zeros(B * S, dtype=np.bool_)
        first_of_span[: len(scored)] = first[targets]
        batch = Batch(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            scored=padded(scored, B * S),
            num_scored=len(scored),
            first_of_span=torch.from_numpy(first_of_span),
            spans=packed,
            documents=None if documents is None else torch.from_numpy(documents.bounds),
            positions=None if documents is None else torch.from_numpy(documents.positions),
            of_source=self._of_source(samples),
        )
        if self.masking is None:
            return batch
        return self.masking(batch, samples, chosen[self.masking.modality], draws)

    def _of_source(self, samples: Sequence[Sample]) -> torch.Tensor | None:
        if self._num_sources == 1:
            return None
        numbers = np.array([sample.source for sample in samples])
        return torch.from_numpy(numbers == np.arange(self._num_sources)[:, None])


def _refuse_senseless(
    samples: Sequence[Sample], documents: Documents | None, spans: FlatSpans
) -> None:
    owners, starts = spans.owners, spans.starts
    stops = starts + spans.lengths
    # A slot past the end would be the next sequence's; slot 0 holds <s>.
    most = np.array([len(sample.tokens) - 1 for sample in samples])
    wrong = (starts < 1) | (spans.lengths < 1) | (stops > most[owners])
    wrong[1:] |= (owners[1:] == owners[:-1]) & (starts[1:] < stops[:-1])
    if wrong.any():
        row = int(owners[wrong.argmax()])
        raise DataError(
            f"sample {samples[row].id} has spans {_listed(row, owners, starts, stops)}, which "
            f"must rise, not overlap, hold a token each and lie in slots 1 to {most[row] - 1}: "
            "rebuild the corpus with spans inside its sequences"
        )
    if documents is None:
        return
    crossing = documents.ids[owners, starts] != documents.ids[owners, stops - 1]
    if crossing.any():
        row = int(owners[crossing.argmax()])
        raise DataError(
            f"sample {samples[row].id} has spans {_listed(row, owners, starts, stops)}, but "
            "with data.attend=within each must lie in one document: rebuild the corpus, or use "
            "data.attend=across"
        )


def _refuse_overlapping(
    samples: Sequence[Sample], sequence_tokens: int, chosen: Mapping[str, FlatSpans]
) -> None:
    starts = np.concatenate([spans.first_slots(sequence_tokens) for spans in chosen.values()])
    stops = starts + np.concatenate([spans.lengths for spans in chosen.values()])
    modalities = np.repeat(list(chosen), [len(spans) for spans in chosen.values()])
    order = np.argsort(starts, kind="stable")
    overlap = starts[order[1:]] < stops[order[:-1]]
    if overlap.any():
        one, other = order[overlap.argmax() :][:2]
        row, slot = divmod(int(starts[other]), sequence_tokens)
        raise DataError(
            f"sample {samples[row].id} has spans of {modalities[one]} and {modalities[other]} that "
            f"overlap in slot {slot}, where one vector has room: choose spans that do not meet, or "
            "build the corpus again"
        )


def _listed(row: int, owners: Ints, starts: Ints, stops: Ints) -> list[list[int]]:
    mine = owners == row
    return np.stack([starts[mine], stops[mine]], axis=1).tolist()


def _refuse_oversize(samples: Sequence[Sample], capacity: SpanCapacity, spans: FlatSpans) -> None:
    B, owners, lengths = len(samples), spans.owners, spans.lengths
    longest = np.zeros(B, dtype=np.int64)
    np.maximum.at(longest, owners, lengths)
    for have, room, what in (
        (np.bincount(owners, lengths, minlength=B), capacity.most_slots, "tokens in spans"),
        (np.bincount(owners, minlength=B), capacity.spans, "spans"),
        (longest, capacity.most_in_one, "tokens in one span"),
    ):
        row = int((have > room).argmax())
        if have[row] > room:
            raise DataError(
                f"sample {samples[row].id} has {int(have[row])} {what} but there is room for "
                f"{room}: raise data.span_capacity (or the encoder's max_tokens), or leave the "
                "document out"
            )
