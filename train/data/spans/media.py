"""Spans of other modalities: their encoder reads the items that documents carry, such as pictures.

A modality adds a file beside this one, with its kind of spans and its reader: what makes something
of a file, arrays of many, and one that shows nothing.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final, Generic, TypeVar

import numpy as np
import torch

from model.batch import PackedSpans
from model.config import Config
from model.encoders.protocol import EncoderKind, ItemEncoderKind
from train.data.document import MEDIA, Kind
from train.data.sample import Sample, SampleItem
from train.data.spans.places import NO_SPANS, FlatSpans, Ints, Spans, padded, runs
from train.data.spans.protocol import Draw, SpanCapacity
from train.data.tokens import SpecialTokens
from train.errors import DataError

_MOST_THREADS: Final = 8


def _usual_threads() -> int:
    """Of one rank: half of the processors at most, as the others have work, too."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)) // 2)


Read = TypeVar("Read")
"""What is made of an item's file."""
Encoder = TypeVar("Encoder", bound=ItemEncoderKind)


class MediaSpansConfig(Config, ABC):
    """The items of one modality: documents bring them, and each is a span."""

    kind: Any
    """Its name, which is that of the modality too."""
    is_stored: ClassVar[bool] = True
    """Documents bring their spans, for which packing leaves room."""
    medium: ClassVar[Kind]
    """Which items it reads."""
    encoder_kind: ClassVar[type[ItemEncoderKind]]
    """What reads them."""
    reader_kind: ClassVar[type["MediaReader[Any, Any]"]]
    """What makes arrays of them."""

    @property
    def is_idle(self) -> bool:
        """Never: whether there are items, only the corpus tells."""
        return False

    @property
    def prefix_tokens(self) -> int:
        """Most tokens of text that are read with an item."""
        return 0

    def room(self, sequence_tokens: int) -> tuple[int, int]:
        """Any slots, in items of eight at least."""
        return sequence_tokens, max(1, sequence_tokens // 8)

    def load(self, sequence_tokens: int) -> None:
        """Not known."""

    def reader(
        self, encoder: EncoderKind, *, capacity: SpanCapacity, seed: int, special: SpecialTokens
    ) -> "MediaReader[Any, Any]":
        """What reads the items for an encoder with which `faults` finds nothing wrong."""
        assert isinstance(encoder, self.encoder_kind), "refused with the configuration"
        return self.reader_kind(medium=self.medium, capacity=capacity, seed=seed, encoder=encoder)

    def faults(
        self, path: str, encoder: EncoderKind, *, sequence_tokens: int, longest_slots: int
    ) -> Iterator[str]:
        """What is wrong with it in a run, each with its key.

        Args:
            path: key of this kind.
            encoder: what is to read its spans.
            sequence_tokens: S.
            longest_slots: of the longest span.
        """
        name = MEDIA[self.medium]
        if not isinstance(encoder, self.encoder_kind):
            yield (
                f"{path}.kind: {self.kind}, but the encoder is of kind {encoder.kind}: choose a "
                "kind of spans that it reads"
            )
        elif longest_slots >= sequence_tokens:
            yield (
                f"{path}: one {name} may take {longest_slots:,} slots, and a sequence has "
                f"{sequence_tokens:,}, one of them for <s>: raise data.sequence_tokens, or have "
                "the encoder make fewer vectors of it"
            )
        if not path.endswith(f".{name}"):
            yield (
                f"{path}.kind: {self.kind}, which is what documents call the modality: name it so "
                f"here and in model.encoders, as spans.{name} and model.encoders.{name}"
            )


@dataclass(frozen=True, kw_only=True)
class MediaReader(ABC, Generic[Encoder, Read]):
    """Reads the items of one modality where documents have them.

    Attributes:
        medium: the modality.
        capacity: room in one sequence.
        encoder: what is to read them.
        seed: of what is changed at random.
        threads: that read items at a time; decoders leave the others alone meanwhile.
    """

    read_file: ClassVar[Callable[..., Any]]
    """`Read` of the bytes of a file, the encoder, and `size` that was recorded."""
    pack_items: ClassVar[Callable[..., PackedSpans]]
    """Arrays of items, and where their vectors go: as `arrays`, with the sizes of `tokens`."""

    vectors_of: ClassVar[Callable[..., int]]
    """Vectors of an item, of it and the encoder."""

    medium: Kind
    capacity: SpanCapacity
    encoder: Encoder
    seed: int = 0
    threads: int = field(default_factory=_usual_threads)

    def read(self, item: SampleItem, random: np.random.Generator | None = None) -> Read:
        """What is made of an item's file.

        Args:
            item: to read.
            random: what it is changed with first, where `changes` says so.

        Raises:
            ValueError: it cannot be read, or is not what was recorded; the message is the end of a
                sentence.
        """
        return self.read_file(item.data, self.encoder, size=item.size)

    def arrays(self, items: Sequence[Read], tokens: Ints, spans: FlatSpans) -> PackedSpans:
        """What the encoder reads of a batch, one padding span where there is no item.

        Args:
            items: one for each span.
            tokens: [B, S].
            spans: where they stand.
        """
        B, S = tokens.shape
        return self.pack_items(
            items,
            spans,
            encoder=self.encoder,
            capacity=self.capacity,
            sequences=B,
            sequence_tokens=S,
        )

    @abstractmethod
    def blank(self, vectors: int) -> Read | None:
        """What would be read of an item of so many vectors that shows nothing, to try what fits.

        None where no item has so many.
        """

    def largest_blank(self, slots: int) -> Read | None:
        """The same of an item of so many slots, the largest that there may be."""
        item_slots = self.capacity.item_slots
        if item_slots is None:
            return self.blank(slots)
        if slots != item_slots:
            return None
        sizes = range(self.encoder.longest_span, 0, -1)
        return next((found for found in map(self.blank, sizes) if found is not None), None)

    @property
    def changes(self) -> bool:
        """Whether items that train are changed at random."""
        return False

    def choose(self, sample: Sample, *, epoch: int, choice: int = 0) -> Spans:
        """All of them, in any epoch."""
        mine = [(item.start, item.stop) for item in self.items_of(sample)]
        return np.array(mine, dtype=np.int64) if mine else NO_SPANS

    def pack(
        self,
        samples: Sequence[Sample],
        tokens: Ints,
        spans: FlatSpans,
        *,
        draws: Sequence[Draw] | None = None,
    ) -> PackedSpans:
        """The items, one after the other.

        Raises:
            DataError: one cannot be read; the message names it and its document.
        """
        drawn = draws if draws is not None and self.changes else [None] * len(samples)
        items = [
            (item, None if draw is None else self._random(sample.source, item, draw))
            for sample, draw in zip(samples, drawn, strict=True)
            for item in self.items_of(sample)
        ]
        if self.threads > 1 and len(items) > 1:
            read = list(self._pool.map(self._read, items))
        else:
            read = [self._read(item) for item in items]
        return self.arrays(read, tokens, spans)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix=f"read-{MEDIA[self.medium]}")

    def items_of(self, sample: Sample) -> Iterator[SampleItem]:
        """Those of the modality."""
        return (item for item in sample.items if item.kind == self.medium)

    def _random(self, source: int, item: SampleItem, draw: Draw) -> np.random.Generator:
        """What an item is changed with: a function of these and the seed, wherever it is packed."""
        key = [self.seed, draw.epoch, item.document]
        place = (source, item.place, draw.choice)
        return np.random.default_rng(np.random.SeedSequence(key, spawn_key=place))

    def _read(self, asked: tuple[SampleItem, np.random.Generator | None]) -> Read:
        item, random = asked
        try:
            return self.read(item, random)
        except ValueError as error:
            raise DataError(
                f"{item.name} {error}: build the corpus again without it, or name the document in "
                "data.unscored_ids"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Laid(Generic[Read]):
    """Items of a microbatch, one at least, and the decoder slots of what connectors make of them.

    Attributes:
        items: those of the spans, or a padding item whose vectors all go to the bin slot B * S.
        lengths: vectors of each, without text that is read with it.
        prefixes: tokens of text that are read behind each.
        slots: static room of slots, filled up with the bin slot.
        room: vectors that there is room for.
        reads_whole: whether a connector reads each item whole.
    """

    items: Sequence[Read]
    lengths: Ints
    prefixes: Ints
    slots: torch.Tensor
    room: int
    reads_whole: bool

    @property
    def num_vectors(self) -> int:
        """Real ones."""
        return int(self.lengths.sum() + self.prefixes.sum())

    @property
    def packed(self) -> dict[str, Any]:
        """What `PackedSpans` of any kind hold."""
        found: dict[str, Any] = {"slots": self.slots, "num_vectors": self.num_vectors}
        if not self.reads_whole:
            return found
        number, longest = len(self.items), int(self.lengths.max())
        cells = np.repeat(np.arange(number) * longest, self.lengths)
        cells += runs(np.zeros_like(self.lengths), self.lengths)
        return found | {
            "item_cells": padded(cells, self.room),
            "num_items": number,
            "longest_item": longest,
        }

    @classmethod
    def of(
        cls,
        items: Sequence[Read],
        spans: FlatSpans,
        *,
        vectors: Callable[[Read], int],
        padding: Callable[[], Read],
        encoder: ItemEncoderKind,
        capacity: SpanCapacity,
        sequences: int,
        sequence_tokens: int,
    ) -> "Laid[Read]":
        """Lay the items of B sequences into their slots.

        Args:
            items: one for each span.
            spans: the slots that each takes.
            vectors: of an item.
            padding: the smallest item.
            encoder: what is to read them.
            capacity: room in one sequence.
            sequences: B.
            sequence_tokens: S.
        """
        B, S, item_slots = sequences, sequence_tokens, capacity.item_slots
        if items:
            lengths = np.array([vectors(item) for item in items])
            taken = lengths if item_slots is None else np.full_like(lengths, item_slots)
            prefixes = spans.lengths - taken
            assert 0 <= prefixes.min(), "spans are as long as their items"
            assert prefixes.max() <= capacity.prefix_tokens, "or as these and their text"
            slots = runs(spans.first_slots(S), spans.lengths)
        else:
            items = [padding()]
            lengths = np.array([vectors(items[0])])
            prefixes = np.zeros_like(lengths)
            slots = np.full(item_slots or lengths[0], B * S)
        room_slots = max(B * capacity.most_slots, len(slots))
        room = room_slots
        if item_slots is not None:
            most = B * min(capacity.spans, capacity.tokens // item_slots)
            room = max(most * encoder.longest_span, int(lengths.sum()))
        return cls(
            items=items,
            lengths=lengths,
            prefixes=prefixes,
            slots=padded(slots, room_slots, B * S),
            room=room,
            reads_whole=item_slots is not None,
        )
