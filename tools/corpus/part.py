"""Builds one part: reads, encodes, writes its shards, and commits them with a record."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tools.corpus.encoding import Encoder
from tools.corpus.entries import Entry
from tools.corpus.media import RowError
from tools.corpus.plan import BuildPlan
from tools.corpus.pool import Report
from tools.corpus.reading import PartReader, ignore
from tools.corpus.request import Request
from tools.corpus.tokenizer import CorpusTokenizer, ReadBack
from tools.corpus.workshop import COUNTS, IDS, KEEP, RECORD, SPLITS, Workshop
from tools.corpus.writing import ShardRecord, ShardWriter
from train.errors import DataError

BATCH_BYTES: Final = 1 << 20
BATCH_DOCUMENTS: Final = 1024


class PartRecord(BaseModel):
    """A part that is whole.

    Attributes:
        part: its number.
        shards: by split, in order.
        duplicates: documents left out because an earlier one is like them.
        bad: what could not be made a document.
        records: that were read: documents, duplicates, bad ones and those that were passed over;
            None of an older version.
        passed_over: records that `--only` does not ask for.
        others: values that such records have, the first that were met.
        empty: names of files that hold no record.
        cut_short: names of files that cannot be read to their end.
        fetched: paths of payloads that rows named, where payloads lie in the source.
        read_back: how its texts differ from what its tokens spell.
        drawn: lowest and highest of its documents' draws in [0, 1], which decide their splits; None
            where none was drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: int
    shards: dict[str, list[ShardRecord]]
    duplicates: int
    bad: list[str]
    records: int | None = None
    passed_over: int = 0
    others: list[str] = Field(default_factory=list)
    empty: list[str] = Field(default_factory=list)
    cut_short: list[str] = Field(default_factory=list)
    fetched: list[str] = Field(default_factory=list)
    read_back: ReadBack = Field(default_factory=ReadBack)
    drawn: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every process of a build needs.

    Attributes:
        workshop: where the corpus comes to be.
        plan: all parts.
        request: what is wanted.
    """

    workshop: Workshop
    plan: BuildPlan
    request: Request

    def read(
        self, number: int, note_bad: Callable[[str], None] = ignore, report: Report = ignore
    ) -> PartReader:
        """The documents of a part."""
        return PartReader(
            plan=self.plan,
            part=self.plan.parts[number],
            fields=self.request.fields,
            note_bad=note_bad,
            report=report,
        )


class PartBuilder:
    """Builds parts, one after the other."""

    def __init__(self, job: Job, tokenizer: bytes) -> None:
        """Load the tokenizer, by the content of its file."""
        self._job = job
        loaded = CorpusTokenizer.from_content(tokenizer, name="the tokenizer")
        self._vocabulary = loaded.vocabulary
        self._loaded = loaded

    def __call__(self, number: int, report: Report) -> PartRecord:
        """Build a part and commit it.

        Raises:
            DataError: more is bad than may be, or the part cannot be read or written.
        """
        workshop, request, plan = self._job.workshop, self._job.request, self._job.plan
        source = plan.sources[plan.parts[number].source]
        encoder = Encoder(self._loaded, has_media=plan.has_media)
        scratch = workshop.scratch / f"{number:05}"
        shutil.rmtree(scratch, ignore_errors=True)
        writers = {
            split: ShardWriter(
                scratch / split,
                encoder.columns,
                stem=f"part-{number:05}",
                size=request.shard_bytes,
                deliver=partial(workshop.deliver, workshop.root / split),
            )
            for split in SPLITS
        }
        counts = np.zeros(self._vocabulary, dtype=np.int64)
        bad = BadList(request.skip_bad)
        ids: list[str] = []
        drawn: list[float] = []
        keep = workshop.read_note(KEEP, number) if request.dedup.method else None
        entries = self._job.read(number, bad.add, report)
        for batch in _batches(entries if keep is None else compress(entries, keep)):
            tokens = 0
            targets: list[npt.NDArray[Any]] = []
            for entry, encoded in zip(batch, encoder(batch), strict=True):
                if isinstance(encoded, RowError):
                    bad.add(f"{entry.id}: {encoded}")
                    continue
                if entry.split is None:
                    drawn.append(_drawn(entry.id) / 2**64)
                split = entry.split or split_of(entry.id, request.validation)
                writers[split].add(encoded.columns, encoded.lengths, encoded.items)
                ids.append(entry.id)
                tokens += encoded.lengths[0]
                if split == "train":
                    targets.append(encoded.targets)
            if targets:
                counts += np.bincount(np.concatenate(targets), minlength=self._vocabulary)
            report(0, 0, tokens)
        for writer in writers.values():
            writer.finish()
        record = PartRecord(
            part=number,
            shards={split: writer.records for split, writer in writers.items()},
            duplicates=0 if keep is None else int((~keep).sum()),
            bad=bad.found,
            records=entries.records,
            passed_over=entries.passed_over,
            others=sorted(entries.others),
            empty=entries.empty,
            cut_short=entries.cut_short,
            fetched=sorted(entries.fetched) if source.payloads else [],
            read_back=encoder.read_back,
            drawn=(min(drawn), max(drawn)) if drawn else None,
        )
        if request.fields.id is not None:
            workshop.note(IDS, number, ids)
        workshop.note(COUNTS, number, counts)
        workshop.note(RECORD, number, record.model_dump_json().encode())
        shutil.rmtree(scratch, ignore_errors=True)
        return record


class BadList:
    """What could not be made a document, up to a number."""

    def __init__(self, limit: int) -> None:
        """Nothing is bad yet."""
        self.found: list[str] = []
        self._limit = limit

    def add(self, *bad: str) -> None:
        """Note where something is bad, and why.

        Raises:
            DataError: it is more than may be skipped.
        """
        self.found += bad
        if len(self.found) <= self._limit:
            return
        if self._limit == 0:
            raise DataError(
                f"{self.found[0]}. Mend it, or allow some to be left out with --skip-bad N."
            )
        told = "\n  ".join(self.found[:20])
        raise DataError(
            f"More than {self._limit} documents are bad:\n  {told}\nMend them, or raise --skip-bad."
        )


def split_of(name: str, validation: float) -> str:
    """The split of a document; the same whatever else is in the corpus."""
    return SPLITS[_drawn(name) < validation * 2**64]


def _drawn(name: str) -> int:
    digest = hashlib.sha256(f"split:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Documents in groups worth a call of the tokenizer."""
    waiting: list[Entry] = []
    num_bytes = 0
    for entry in entries:
        waiting.append(entry)
        num_bytes += entry.num_bytes
        if num_bytes >= BATCH_BYTES or len(waiting) >= BATCH_DOCUMENTS:
            yield waiting
            waiting, num_bytes = [], 0
    if waiting:
        yield waiting
