"""The sources of a run: corpora, the sequences each one gives, and the reading of a sequence."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.collate import Attend
from train.data.corpus import Corpus
from train.data.document import LENGTH_COLUMNS, MEDIA, Document, Kind, plain_tokens
from train.data.order import GlobalOrder
from train.data.pack import Pack, Room, SequenceShape
from train.data.sample import Sample, SampleItem
from train.data.sequences import FittedSequences, PlannedSequence, StreamSequences
from train.data.slots import Slotted, slotted
from train.data.spans.places import NO_SPANS
from train.data.store.manifest import require_vocabulary
from train.data.store.shards import ShardStore
from train.errors import DataError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Laying:
    """How sequences are laid out.

    Attributes:
        sequence_tokens: S.
        pack: whether documents are laid into sequences so that they fit, or cut as a stream.
        attend: whether each document of a sequence begins with its own `<s>`, or only the first.
        rooms: for spans that documents bring; text spans without room are text like any.
        window: samples that are shuffled together, and documents that are packed together.
        seed: of the run.
        vocabulary: ids that the model knows; None asks no one.
        unscored_ids: documents of training in whose place padding is read, and nothing is scored.
    """

    sequence_tokens: int
    pack: Pack = "fit"
    attend: Attend = "across"
    rooms: tuple[Room, ...] = ()
    window: int = 65_536
    seed: int = 0
    vocabulary: int | None = None
    unscored_ids: frozenset[str] = frozenset()

    @property
    def shape(self) -> SequenceShape:
        """Room in a sequence. Its last token is a target only, so S + 1 tokens have room."""
        within = self.attend == "within"
        return SequenceShape(
            slots=self.sequence_tokens + within,
            opening=int(within),
            rooms=self.rooms,
        )


class Source:
    """One corpus of a run.

    Args:
        name: as in the configuration.
        number: its place among the sources, from 0.
        corpus: its splits.
        laying: how its sequences are laid out.

    Raises:
        DataError: the corpus cannot be read in this way.
    """

    def __init__(self, name: str, number: int, corpus: Corpus, laying: Laying):
        self.name = name
        self.number = number
        self.corpus = corpus
        self.laying = laying
        for split in (corpus.train, corpus.validation):
            if laying.vocabulary is not None:
                require_vocabulary(split.manifest, place=split.root, wanted=laying.vocabulary)
        self._vectors = {
            room.kind: room.vectors for room in laying.rooms if room.vectors is not None
        }
        self._shard_ends = np.cumsum(corpus.train.shard_sizes)
        self.sequences = self._sequences_of(corpus.train)
        self.validation = ValidationSequences(self, self._sequences_of(corpus.validation))
        """The sequences of the validation split, in one order for ever."""

    def sequences_for(self, *, epochs: float | None, tokens: int | None) -> int:
        """Sequences that hold an amount of the training split, as full as they are."""
        total_tokens = int(self.corpus.train.totals[:, 0].sum())
        sequences_an_epoch = self.sequences.sequences_an_epoch(total_tokens)
        if epochs is None:
            assert tokens is not None
            epochs = tokens / total_tokens
        return math.ceil(round(epochs * sequences_an_epoch, 6))

    @property
    def working_set_bytes(self) -> int:
        """Shards of two shuffle windows: the one that is read, and the next; 0 if none is kept."""
        store = self.corpus.train
        if not store.place.is_remote:
            return 0
        share = min(1.0, 2 * self.laying.window / len(self.sequences.order))
        num_shards = math.ceil(share * len(store.shard_sizes)) + 2
        return sum(sorted(store.shard_bytes, reverse=True)[:num_shards])

    def read(self, sequence: PlannedSequence, *, split: ShardStore | None = None) -> Sample:
        """The sample that a sequence plans.

        Raises:
            DataError: a shard is missing or damaged, or could not be read in time.
        """
        store = split or self.corpus.train
        parts: list[tuple[int, int, int]] = sequence.parts.tolist()
        within = self.laying.attend == "within"
        total = (not within) + sum([end - begin + within for _, begin, end in parts])
        start = self.corpus.special.start
        tokens = np.empty(total, dtype=np.int64)
        tokens[0] = start
        # Where each document has a `<s>`, that is never scored.
        scored = np.zeros(total, dtype=np.bool_) if within else None
        spans: list[Ints] = []
        items: list[SampleItem] = []
        documents: list[tuple[int, int]] = []
        at = int(not within)
        for (number, begin, end), recorded in zip(parts, sequence.lengths.tolist(), strict=True):
            columns = store.columns(number)
            if split is None and columns.get("id") in self.laying.unscored_ids:
                columns = self._padding(columns, num_tokens=recorded)
            plain = plain_tokens(columns)
            document = self._document(store, number, columns) if plain is None else None
            stored = plain if document is None else document.tokens
            assert stored is not None
            if len(stored) != recorded:
                raise DataError(
                    f"document {columns['id']} of {store.root} has {len(stored)} tokens where the "
                    f"recorded lengths say {recorded}: copy or build the corpus again"
                )
            stop = at + within + end - begin
            documents.append((at, stop))
            if within:
                tokens[at] = start
                at += 1
            tokens[at:stop] = stored[begin:end]
            if document is not None and scored is None:
                scored = np.ones(total, dtype=np.bool_)
            if scored is not None:
                scored[at:stop] = True if document is None else document.scored[begin:end]
            if document is not None:
                inside = (document.spans[:, 0] >= begin) & (document.spans[:, 1] <= end)
                spans.append(document.spans[inside] + (at - begin))
                items += self._items(store, number, columns, document, (begin, end), at)
            at = stop
        if items and items[-1].stop == total:  # the last token has no slot in a full sequence
            tokens = np.append(tokens, self.corpus.special.padding)
            assert scored is not None, "items are no targets"
            scored = np.append(scored, False)
        vocabulary = self.laying.vocabulary
        if vocabulary is not None and tokens.max() >= vocabulary:
            raise DataError(
                f"sequence {sequence.number} of {store.root} (stored numbers "
                f"{sequence.parts[:, 0].tolist()}) has token {tokens.max()}, but the model "
                f"knows {vocabulary}: build the corpus again with the model's tokenizer"
            )
        return Sample(
            id=sequence.number,
            tokens=tokens,
            spans=np.concatenate(spans) if spans else NO_SPANS,
            scored=scored,
            documents=np.array(documents, dtype=np.int64),
            source=self.number,
            items=tuple(items),
        )

    def _document(self, store: ShardStore, number: int, columns: dict[str, Any]) -> Slotted:
        try:
            document = Document.from_columns(columns)
            return slotted(document, self._vectors, filler=self.corpus.special.padding)
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"document {number} of {store.root} is none ({error}): build the corpus again"
            ) from error

    def _items(
        self,
        store: ShardStore,
        number: int,
        columns: dict[str, Any],
        document: Slotted,
        part: tuple[int, int],
        at: int,
    ) -> list[SampleItem]:
        """Items in a part of a document, which lies in the slots from `at` on."""
        begin, end = part
        return [
            SampleItem(
                kind=item.kind,
                size=item.size,
                data=item.data,
                start=start - begin + at,
                stop=stop - begin + at,
                name=f"{MEDIA[item.kind]} {place} of document {number} of {store.root} "
                f"({columns['id']})",
                document=number,
                place=place,
            )
            for place, (item, start, stop) in enumerate(document.items, 1)
            if begin <= start and stop <= end
        ]

    def _padding(self, columns: dict[str, Any], *, num_tokens: int) -> dict[str, Any]:
        """A document of the same length that says nothing."""
        tokens = np.full(num_tokens, self.corpus.special.padding, dtype=np.int64)
        segments = np.array([[int(Kind.TEXT), num_tokens, 0]], dtype=np.int64)
        return {"id": columns["id"], "tokens": tokens, "segments": segments}

    def shards_of(self, sequences: Sequence[PlannedSequence]) -> Ints:
        """Shards that reading some sequences opens, in order, the same one perhaps many times."""
        numbers = np.concatenate([sequence.parts[:, 0] for sequence in sequences])
        return np.searchsorted(self._shard_ends, numbers, side="right")

    def _sequences_of(self, store: ShardStore) -> FittedSequences | StreamSequences:
        if not store.totals[:, 0].any():
            raise DataError(f"{store.root} holds no text to train on: build it with more")
        laying = self.laying
        sizes = store.shard_sizes
        if laying.pack == "stream":
            sizes = stream_runs(store, sequence_tokens=laying.sequence_tokens)
        is_train = store is self.corpus.train
        order = GlobalOrder(
            sizes,
            seed=laying.seed if is_train else 0,
            source=self.number if is_train else 0,
            shuffle=is_train,
            window=laying.window,
        )
        if laying.pack == "stream":
            return StreamSequences(order, store, sequence_tokens=laying.sequence_tokens)
        return FittedSequences(order, store, shape=laying.shape)


def stream_runs(store: ShardStore, *, sequence_tokens: int) -> list[int]:
    """Sequences that the order of a stream keeps together, as it keeps the documents of a shard.

    They are as many as a shard of the corpus's size held when corpora stored sequences (a header of
    204 bytes, 11 bytes for each beside its tokens), so that the order is that of earlier versions.

    Args:
        store: a split.
        sequence_tokens: S.

    Raises:
        DataError: the split has too few tokens for one sequence.
    """
    num_sequences = int(store.totals[:, 0].sum()) // sequence_tokens
    if not num_sequences:
        raise DataError(
            f"{store.root} holds too little text for one sequence of {sequence_tokens} tokens: "
            "build it with more, or lower data.sequence_tokens"
        )
    token_bytes = 2 if (store.manifest.vocabulary or 0) <= 1 << 16 else 4
    shard_bytes = store.manifest.recipe.shard_bytes
    run = max(1, (shard_bytes - 204) // (token_bytes * (sequence_tokens + 1) + 11))
    whole, rest = divmod(num_sequences, run)
    return [run] * whole + ([rest] if rest else [])


class ValidationSequences:
    """The packed sequences of a validation split."""

    def __init__(self, source: Source, sequences: FittedSequences | StreamSequences):
        self._source = source
        self._sequences = sequences

    def __len__(self) -> int:
        return self.up_to(sys.maxsize)

    def up_to(self, count: int) -> int:
        """How many sequences there are, or `count` where there are more, which is told sooner."""
        return self._sequences.count_up_to(count)

    def __getitem__(self, number: int, /) -> Sample:
        """One sequence as a sample."""
        planned = self._sequences.sequence(number)
        return self._source.read(planned, split=self._source.corpus.validation)


class Sources:
    """All sources of a run, which share a tokenizer and have items that its encoders read.

    Raises:
        DataError: they do not.
    """

    def __init__(self, sources: Sequence[Source]):
        self.all = list(sources)
        if faults := [fault for source in self.all for fault in _unreadable(source)]:
            raise DataError("\n".join(faults))
        first = self.all[0].corpus
        for other in self.all[1:]:
            if other.corpus.tokenizer_sha256 != first.tokenizer_sha256:
                raise DataError(
                    f"{other.corpus.root} was written with another tokenizer than {first.root}: "
                    "build it with that one (--tokenizer-of)"
                )
            if other.corpus.special != first.special:
                raise DataError(
                    f"{other.corpus.root} has other ids of special tokens than {first.root}, of "
                    "the same tokenizer: copy or build the one again whose manifest was changed"
                )
        self.special = first.special
        self.tokenizer_sha256 = first.tokenizer_sha256
        self.tokenizer = first.tokenizer
        self.copy_tokenizer = first.copy_tokenizer

    @property
    def places(self) -> str:
        """Where they lie, in words."""
        return ", ".join(source.corpus.root for source in self.all)

    @property
    def fingerprint(self) -> str:
        """Equal for two runs if and only if their samples are, wherever they lie."""
        return "+".join(source.corpus.fingerprint for source in self.all)

    def count(self, kind: Kind) -> int:
        """Items of a modality in all training splits."""
        column = LENGTH_COLUMNS.index(MEDIA[kind])
        return sum(int(source.corpus.train.totals[:, column].sum()) for source in self.all)

    def token_counts(self, shares: Sequence[float]) -> Ints:
        """[V] how often each token occurs in training, sources counted by their shares."""
        counts = [source.corpus.token_counts() for source in self.all]
        if len(counts) == 1:
            return counts[0]
        total = sum(int(each.sum()) for each in counts)
        mixed = sum(
            each * (share * total / max(1, each.sum()))
            for each, share in zip(counts, shares, strict=True)
        )
        return np.rint(mixed).astype(np.int64)


def _unreadable(source: Source) -> Iterator[str]:
    """Items that no encoder reads, or whose sizes are not known, each in a sentence."""
    read = {room.kind for room in source.laying.rooms}
    for split in (source.corpus.train, source.corpus.validation):
        counts = split.totals.sum(axis=0)[-len(MEDIA) :].tolist()
        listed = [items.sized for items in split.lengths_index.items if items is not None]
        sized = np.sum(listed, axis=0).tolist() if listed else [0] * len(MEDIA)
        for (kind, name), count, known in zip(MEDIA.items(), counts, sized, strict=True):
            if count and kind not in read:
                yield (
                    f"{split.root} has {count:,} spans of {name}, and the model has no encoder of "
                    f"them: add model.encoders.{name} and spans.{name}, or train on a corpus of "
                    "text"
                )
            elif known < count:
                yield (
                    f"{split.root} has {count:,} spans of {name}, of which {count - known:,} have "
                    "no recorded size, as in corpora of earlier versions: build the corpus again"
                )
