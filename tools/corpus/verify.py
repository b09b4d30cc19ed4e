"""Checks every byte of a corpus against what its index, lengths and manifest say."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tools.corpus import inputs, left_out
from tools.corpus.digests import Digests, digest, gathered, located, repeats
from tools.corpus.encoding import targets
from tools.corpus.finished import Corpus
from tools.corpus.media import measured
from tools.corpus.pool import Report, spread
from tools.corpus.progress import bar
from tools.corpus.tokenizer import TOKENIZER_NAME
from train.data.corpus import TOKEN_COUNTS_NAME, parse_token_counts
from train.data.document import LENGTH_COLUMNS, MEDIA, Document
from train.data.store.manifest import MANIFEST_BYTES_AT_MOST, MANIFEST_NAME, SplitRecord
from train.data.store.shards import ShardStore
from train.errors import DataError
from train.storage.place import Place

FAULTS_OF_A_SHARD: Final = 5
"""As many are told of one shard; the rest are counted."""
_REPORT_DOCUMENTS: Final = 500


class Shard(NamedTuple):
    """A shard that is to be checked: of which split it is which, and what the index says of it."""

    split: str
    number: int
    begin: int
    samples: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.split}, shard {self.number}"


@dataclass(kw_only=True)
class Findings:
    """What one shard holds, or all of a split.

    Attributes:
        faults: what is wrong.
        totals: sums of `LENGTH_COLUMNS`.
        samples: how many could be decoded.
        ids: a digest of each document's id.
        counts: [V] how often each token is a target.
    """

    faults: list[str] = field(default_factory=list)
    totals: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(LENGTH_COLUMNS), np.int64)
    )
    samples: int = 0
    ids: Digests = field(default_factory=lambda: gathered(()))
    counts: npt.NDArray[np.int64]

    @classmethod
    def none(cls, corpus: Corpus) -> "Findings":
        """Nothing is found yet."""
        return cls(counts=np.zeros(_vocabulary(corpus), np.int64))

    def add(self, other: "Findings") -> None:
        """Count what another shard holds as well."""
        self.totals += other.totals
        self.samples += other.samples
        self.counts += other.counts


class ShardChecker:
    """Checks shards, one after the other."""

    def __init__(self, corpus: Corpus, cache: Path) -> None:
        """Nothing is opened yet."""
        self._corpus = corpus
        self._cache = cache
        self._vocabulary = _vocabulary(corpus)
        self._opened: dict[str, ShardStore] = {}

    def __call__(self, shard: Shard, report: Report) -> Findings:
        """Check a shard."""
        cache = self._cache / shard.split
        if shard.split not in self._opened:
            self._opened[shard.split] = self._corpus.store(shard.split, cache=cache)
        store = self._opened[shard.split]
        findings = Findings.none(self._corpus)
        try:
            noted = [tuple(row) for row in store.lengths(shard.number).tolist()]
            items = store.items(shard.number)
        except DataError as error:
            findings.faults.append(str(error))
            noted, items = [None] * shard.samples, None
        ids: list[bytes] = []
        since = tokens = 0
        for place, lengths in enumerate(noted):
            try:
                columns = store.columns(shard.begin + place)
            except DataError as error:
                findings.faults.append(str(error))
                if "cannot be decoded" not in str(error):
                    break  # the shard as a whole is not what it should be
                continue
            try:
                of_document = None if items is None else items[items[:, 0] == place, 1:]
                tokens += self._check(columns, lengths, of_document, findings)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                where = f"{self._corpus.splits[shard.split]}, shard {shard.number}"
                findings.faults.append(f"{where}, sample {place}: {error}")
            ids.append(digest(str(columns.get("id")).encode()))
            since += 1
            if since == _REPORT_DOCUMENTS:
                report(0, since, tokens)
                since = tokens = 0
        report(shard.num_bytes, since, tokens)
        findings.samples, findings.ids = len(ids), gathered(ids)
        store.close()
        # A corpus may be larger than this host's disk.
        for path in cache.glob("*.mds"):
            path.unlink(missing_ok=True)
        return findings

    def _check(
        self,
        columns: Mapping[str, Any],
        noted: tuple[int, ...] | None,
        items: npt.NDArray[np.uint32] | None,
        findings: Findings,
    ) -> int:
        tokens = np.asarray(columns["tokens"])
        if tokens.dtype.kind not in "ui" or tokens.ndim != 1:
            raise ValueError(f"tokens are {tokens.dtype} of shape {tokens.shape}")
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocabulary:
            raise ValueError(
                f"token {int(tokens.max())} is not below the vocabulary's {self._vocabulary}"
            )
        document = Document.from_columns(dict(columns))
        lengths = document.lengths()
        findings.totals += lengths
        if noted not in (None, lengths):
            raise ValueError(f"its lengths are {lengths}, and {noted} is noted")
        if "sizes" in columns:  # else it is of an earlier version
            _check_items(document, items)
        np.add.at(findings.counts, targets(document), 1)
        return tokens.size


def _check_items(document: Document, noted: npt.NDArray[np.uint32] | None) -> None:
    rows = document.item_rows()
    if noted is not None and [tuple(row) for row in noted.tolist()] != rows:
        raise ValueError(f"its items are {rows}, and {noted.tolist()} are noted")
    for number, item in enumerate(document.items()):
        if (found := measured(item.kind, item.data)) != item.size:
            name = MEDIA[item.kind]
            raise ValueError(f"{name} {number} is of size {found}, and {item.size} is noted")


def verify(path: str, *, workers: int, console: Console) -> list[str]:
    """Check a corpus, or a split.

    Args:
        path: directory or URL.
        workers: processes.
        console: where progress is shown.

    Returns:
        What is wrong; nothing if all is well.

    Raises:
        DataError: there is no corpus.
    """
    corpus = Corpus.at(path)
    faults = _faults_beside(corpus)
    if corpus.place not in corpus.splits.values():
        place = corpus.place / left_out.LEFT_OUT_NAME
        content = inputs.content(place) if place.exists() else None
        faults += left_out.faults(corpus.manifest, content, place=str(place))
    shards: list[Shard] = []
    of_splits: dict[str, Findings] = {}
    told: dict[Shard, list[str]] = {}
    ids: dict[Shard, Digests] = {}
    with tempfile.TemporaryDirectory(prefix="semicausal-verify-") as cache:
        for split in corpus.splits:
            try:
                store = corpus.store(split, cache=Path(cache) / split)
            except DataError as error:
                faults.append(str(error))
                continue
            of_splits[split] = Findings.none(corpus)
            begin = 0
            sizes = zip(store.shard_sizes, store.shard_bytes, strict=True)
            for number, (samples, num_bytes) in enumerate(sizes):
                shards.append(Shard(split, number, begin, samples, num_bytes))
                begin += samples
        checker = partial(ShardChecker, corpus, Path(cache))
        total = sum(shard.num_bytes for shard in shards)
        with bar(console, "verifying", total_bytes=total) as report:
            for shard, found in spread(shards, checker, workers=workers, report=report):
                of_splits[shard.split].add(found)
                told[shard], ids[shard] = found.faults, found.ids
    for shard in shards:
        faults += told[shard][:FAULTS_OF_A_SHARD]
        if len(told[shard]) > FAULTS_OF_A_SHARD:
            faults.append(f"{shard}: {len(told[shard]) - FAULTS_OF_A_SHARD:,} more")
    if not any(told.values()):
        # Sums of what could not be read would only repeat that it could not.
        for split, found in of_splits.items():
            num_bytes = sum(shard.num_bytes for shard in shards if shard.split == split)
            faults += _sums(corpus, split, found, num_bytes)
    return faults + _repeated_ids(corpus, shards, [ids[shard] for shard in shards])


def _vocabulary(corpus: Corpus) -> int:
    if corpus.manifest.vocabulary is None:
        raise DataError(
            f"{corpus.place}/{MANIFEST_NAME} states no vocabulary; build the corpus again."
        )
    return corpus.manifest.vocabulary


def _content(place: Place) -> bytes:
    return inputs.content(place, limit_bytes=MANIFEST_BYTES_AT_MOST)


def _faults_beside(corpus: Corpus) -> list[str]:
    """Faults of the files beside the shards."""
    faults: list[str] = []
    manifest = corpus.manifest
    for place in sorted({corpus.place, *corpus.splits.values()}, key=str):
        try:
            content = _content(place / TOKENIZER_NAME)
            if hashlib.sha256(content).hexdigest() != manifest.tokenizer_sha256:
                faults.append(f"{place}/{TOKENIZER_NAME} is not the tokenizer of the manifest")
            stated = _content(corpus.place / MANIFEST_NAME)
            if _content(place / MANIFEST_NAME) != stated:
                faults.append(f"{place}/{MANIFEST_NAME} is not the manifest of the corpus")
            counts = _content(corpus.splits["train"] / TOKEN_COUNTS_NAME)
            if _content(place / TOKEN_COUNTS_NAME) != counts:
                faults.append(f"{place}/{TOKEN_COUNTS_NAME} is not that of the training split")
        except DataError as error:
            faults.append(str(error))
    try:
        tokenizer = corpus.tokenizer()
    except DataError as error:
        return [*faults, str(error)]
    if tokenizer.vocabulary != manifest.vocabulary:
        faults.append(
            f"{corpus.place}: the tokenizer has {tokenizer.vocabulary} entries, the manifest says "
            f"{manifest.vocabulary}"
        )
    if tokenizer.special != manifest.special_tokens:
        faults.append(f"{corpus.place}: the tokenizer's special tokens are not the manifest's")
    return faults


def _sums(corpus: Corpus, split: str, found: Findings, num_bytes: int) -> list[str]:
    """Faults of what the manifest and the counts of a split add up to."""
    totals = dict(zip(LENGTH_COLUMNS, found.totals.tolist(), strict=True))
    real = {"samples": found.samples, "documents": found.samples, "bytes": num_bytes} | totals
    stated = corpus.manifest.splits.get(split, SplitRecord())
    faults = [
        f"{corpus.splits[split]}: there are {value:,} {name}, and the manifest says "
        f"{getattr(stated, name)}"
        for name, value in real.items()
        if getattr(stated, name) != value
    ]
    if split != "train":
        return faults
    place = corpus.splits[split] / TOKEN_COUNTS_NAME
    try:
        stored = parse_token_counts(
            _content(place), name=str(place), vocabulary=_vocabulary(corpus)
        )
    except DataError as error:
        return [*faults, str(error)]
    if not np.array_equal(stored, found.counts):
        faults.append(f"{place} does not hold how often each token is a target")
    return faults


def _repeated_ids(corpus: Corpus, shards: Sequence[Shard], ids: Sequence[Digests]) -> list[str]:
    """Faults of documents that have the id of another."""
    if not shards:
        return []
    repeated, originals = repeats(np.concatenate(ids))
    sizes = [len(of_shard) for of_shard in ids]

    def place(number: int) -> str:
        index, sample = located(number, sizes)
        return f"{shards[index]}, sample {sample}"

    faults = [
        f"{corpus.place}: two documents have one id: {place(original)} and {place(number)}"
        for original, number in zip(originals[:FAULTS_OF_A_SHARD], repeated, strict=False)
    ]
    if len(repeated) > FAULTS_OF_A_SHARD:
        faults.append(f"{corpus.place}: {len(repeated) - FAULTS_OF_A_SHARD:,} more such documents")
    return faults
