"""Builds one part: reads, encodes, writes its shards, and commits them with a record."""

import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tools.corpus.encoding import Encoder
from tools.corpus.entries import Bad, Entry, Fields
from tools.corpus.ids import write_ids
from tools.corpus.plan import BuildPlan
from tools.corpus.pool import Report
from tools.corpus.reading import PartReader
from tools.corpus.tokenizer import CorpusTokenizer
from tools.corpus.workshop import PARTS, SCRATCH, SPLITS, Workshop
from tools.corpus.writing import ShardRecord, ShardWriter
from train.errors import DataError

BATCH_BYTES: Final = 1 << 20
BATCH_DOCUMENTS: Final = 1024
DUPLICATES: Final = "duplicates"


class PartRecord(BaseModel):
    """A part that is whole.

    Attributes:
        part: its number.
        shards: by split, in order.
        duplicates: documents left out because an earlier one is like them.
        bad: what could not be made a document.
        drawn: lowest and highest of the numbers from 0 to 1 by which its documents fall into
            splits; None if it has no documents.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: int
    shards: dict[str, list[ShardRecord]]
    duplicates: int
    bad: list[str]
    drawn: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class PartSetup:
    """What every process needs to build parts.

    Attributes:
        out: place of the corpus.
        plan: all parts.
        tokenizer: content of tokenizer.json.
        fields: columns of tables.
        validation: share of documents.
        shard_bytes: limit of a shard.
        skip_bad: how many documents may be bad.
    """

    out: str
    plan: BuildPlan
    tokenizer: bytes
    fields: Fields
    validation: float
    shard_bytes: int
    skip_bad: int

    def __call__(self) -> "PartBuilder":
        """Get ready, once in each process."""
        return PartBuilder(self)


class PartBuilder:
    """Builds parts, one after the other."""

    def __init__(self, setup: PartSetup) -> None:
        """Load the tokenizer."""
        self._setup = setup
        self._workshop = Workshop(setup.out)
        tokenizer = CorpusTokenizer.from_content(setup.tokenizer, name="the tokenizer")
        self._vocabulary = tokenizer.vocabulary
        self._encoder = Encoder(tokenizer, has_media=setup.plan.has_media)

    def __call__(self, number: int, report: Report) -> PartRecord:
        """Build a part and commit it.

        Raises:
            DataError: more is bad than may be, or the part cannot be read or written.
        """
        setup, workshop = self._setup, self._workshop
        part = setup.plan.parts[number]
        source = setup.plan.sources[part.source].name
        scratch = workshop.scratch / SCRATCH / f"{number:05}"
        shutil.rmtree(scratch, ignore_errors=True)
        counts = np.zeros(self._vocabulary, dtype=np.int64)
        bad = BadList(setup.skip_bad)
        reader = PartReader(part, source=source, fields=setup.fields)
        kept = Kept(workshop, number)
        ids: list[str] = []
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(
                    _Writing(
                        ShardWriter(
                            scratch / split,
                            self._encoder.columns,
                            stem=f"part-{number:05}",
                            size=setup.shard_bytes,
                            deliver=workshop.deliver_to(workshop.root / split),
                        )
                    )
                )
                for split in SPLITS
            }
            done = 0
            for batch in _batches(kept(reader), bad):
                tokens = 0
                targets: list[npt.NDArray[Any]] = []
                for entry, encoded in zip(batch, self._encoder(batch), strict=True):
                    if isinstance(encoded, Bad):
                        bad.add(encoded)
                        continue
                    split = entry.split or split_of(entry.id, setup.validation)
                    writers[split].add(encoded.columns, encoded.lengths)
                    ids.append(entry.id)
                    tokens += encoded.lengths[0]
                    if split == "train":
                        targets.append(encoded.targets)
                if targets:
                    counts += np.bincount(np.concatenate(targets), minlength=self._vocabulary)
                report(reader.done_bytes - done, len(batch), tokens)
                done = reader.done_bytes
        report(part.num_bytes - done, 0, 0)
        numbers = [_drawn(name) / 2**64 for name in ids]
        drawn = (min(numbers), max(numbers)) if numbers else None
        record = PartRecord(
            part=number,
            shards={split: writer.records for split, writer in writers.items()},
            duplicates=kept.left_out,
            bad=bad.found,
            drawn=drawn,
        )
        if setup.fields.id is not None:
            write_ids(workshop, number, ids)
        self._commit(record, counts)
        shutil.rmtree(scratch, ignore_errors=True)
        return record

    def _commit(self, record: PartRecord, counts: npt.NDArray[np.int64]) -> None:
        directory = self._workshop.working / PARTS
        content = io.BytesIO()
        np.save(content, counts, allow_pickle=False)
        self._workshop.write(directory / counts_name(record.part), content.getvalue())
        # With it the part is done.
        self._workshop.write(
            directory / record_name(record.part), record.model_dump_json().encode()
        )


class BadList:
    """What could not be made a document, up to a number."""

    def __init__(self, limit: int) -> None:
        """Nothing is bad yet."""
        self.found: list[str] = []
        self._limit = limit

    def add(self, bad: Bad) -> None:
        """Note it.

        Raises:
            DataError: it is one too many.
        """
        self.found.append(str(bad))
        require_few_bad(self.found, self._limit)


def require_few_bad(found: list[str], limit: int) -> None:
    """Refuse more bad documents than may be skipped.

    Raises:
        DataError: there are.
    """
    if len(found) <= limit:
        return
    if limit == 0:
        raise DataError(f"{found[0]}. Mend it, or allow some to be left out with --skip-bad N.")
    told = "\n  ".join(found[:20])
    raise DataError(
        f"More than {limit} documents are bad:\n  {told}\nMend them, or raise --skip-bad."
    )


def split_of(name: str, validation: float) -> str:
    """The split of a document; the same whatever else is in the corpus."""
    return SPLITS[_drawn(name) < validation * 2**64]


def _drawn(name: str) -> int:
    digest = hashlib.sha256(f"split:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def record_name(part: int) -> str:
    """Of the file that commits a part."""
    return f"{part:05}.json"


def counts_name(part: int) -> str:
    """Of the file that says how often each token is a target in a part."""
    return f"{part:05}.counts.npy"


def keep_name(part: int) -> str:
    """Of the file that says which documents of a part stay."""
    return f"{part:05}.keep.npy"


class Kept:
    """Passes on the documents of a part that are no duplicates, once those are known."""

    def __init__(self, workshop: Workshop, part: int) -> None:
        """Look whether duplicates were sought."""
        self.left_out = 0
        data = workshop.read(workshop.working / DUPLICATES / keep_name(part))
        self._keep = None if data is None else np.load(io.BytesIO(data), allow_pickle=False)

    def __call__(self, items: PartReader) -> Iterator[Entry | Bad]:
        """The documents to keep, and all that is bad."""
        number = 0
        for item in items:
            if isinstance(item, Entry):
                keep = self._keep is None or bool(self._keep[number])
                number += 1
                if not keep:
                    self.left_out += 1
                    continue
            yield item


class _Writing:
    """Ends a writer when its block ends well; otherwise nothing more is written."""

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer

    def __enter__(self) -> ShardWriter:
        return self._writer

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._writer.finish()


def _batches(items: Iterator[Entry | Bad], bad: BadList) -> Iterator[list[Entry]]:
    """Documents in groups worth a call of the tokenizer."""
    waiting: list[Entry] = []
    num_bytes = 0
    for item in items:
        if isinstance(item, Bad):
            bad.add(item)
            continue
        waiting.append(item)
        num_bytes += item.num_bytes
        if num_bytes >= BATCH_BYTES or len(waiting) >= BATCH_DOCUMENTS:
            yield waiting
            waiting, num_bytes = [], 0
    if waiting:
        yield waiting
