"""Checks every byte of a corpus against what its index, lengths and manifest say."""

import hashlib
import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tools.corpus import inputs
from tools.corpus.finished import Corpus, targets
from tools.corpus.manifest import TOKEN_COUNTS_NAME
from tools.corpus.pool import Report, spread
from tools.corpus.progress import Bar
from tools.corpus.tokenizer import TOKENIZER_NAME, CorpusTokenizer
from train.data.document import LENGTH_COLUMNS, Document
from train.data.store.manifest import MANIFEST_NAME
from train.data.store.shards import ShardStore
from train.errors import DataError

FAULTS_OF_A_SHARD: Final = 5
"""As many are told of one shard; the rest are counted."""
_ID_BYTES: Final = 16
_REPORT_DOCUMENTS: Final = 500

ShardKey = tuple[str, int]


@dataclass(kw_only=True)
class ShardFindings:
    """What one shard holds, or all of a split.

    Attributes:
        faults: what is wrong.
        totals: sums of `LENGTH_COLUMNS`.
        samples: how many could be decoded.
        ids: a hash of each document's id, one after the other.
        counts: [V] how often each token is a target.
    """

    faults: list[str] = field(default_factory=list)
    totals: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(LENGTH_COLUMNS), np.int64)
    )
    samples: int = 0
    ids: bytes = b""
    counts: npt.NDArray[np.int64]

    def add_fault(self, text: str) -> None:
        """Note what is wrong."""
        self.faults.append(text)

    def add(self, other: "ShardFindings") -> None:
        """Count what another shard holds as well."""
        self.totals += other.totals
        self.samples += other.samples
        self.counts += other.counts


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every process needs to check shards."""

    corpus: Corpus
    cache: Path

    def __call__(self) -> "ShardChecker":
        """Get ready, once in each process."""
        return ShardChecker(self)


class ShardChecker:
    """Checks shards, one after the other."""

    def __init__(self, setup: Setup) -> None:
        """Nothing is opened yet."""
        self._setup = setup
        self._corpus = setup.corpus
        self._vocabulary = int(setup.corpus.manifest["vocabulary"])
        self._opened: dict[str, tuple[ShardStore, list[int], list[int]]] = {}

    def __call__(self, key: ShardKey, report: Report) -> ShardFindings:
        """Check a shard."""
        split, shard = key
        store, ends, sizes = self._open(split)
        begin = ends[shard - 1] if shard else 0
        findings = ShardFindings(counts=np.zeros(self._vocabulary, np.int64))
        lengths = self._lengths(store, shard, findings)
        ids: list[bytes] = []
        since = tokens = 0
        for place in range(ends[shard] - begin):
            where = f"{self._corpus.splits[split]}, shard {shard}, sample {place}"
            try:
                columns = store.columns(begin + place)
            except DataError as error:
                findings.add_fault(str(error))
                if "cannot be decoded" not in str(error):
                    break  # the shard as a whole is not what it should be
                continue
            try:
                tokens += self._check(
                    columns, None if lengths is None else lengths[place], findings
                )
            except (ValueError, KeyError, TypeError, IndexError) as error:
                findings.add_fault(f"{where}: {error}")
            name = str(columns.get("id"))
            ids.append(hashlib.blake2b(name.encode(), digest_size=_ID_BYTES).digest())
            findings.samples += 1
            since += 1
            if since == _REPORT_DOCUMENTS:
                report(0, since, tokens)
                since = tokens = 0
        report(sizes[shard], since, tokens)
        findings.ids = b"".join(ids)
        store.close()
        self._forget(split)
        return findings

    def _check(
        self,
        columns: Mapping[str, Any],
        lengths: npt.NDArray[np.uint32] | None,
        findings: ShardFindings,
    ) -> int:
        tokens = np.asarray(columns["tokens"])
        if tokens.dtype.kind not in "ui" or tokens.ndim != 1:
            raise ValueError(f"tokens are {tokens.dtype} of shape {tokens.shape}")
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocabulary:
            raise ValueError(
                f"token {int(tokens.max())} is not below the vocabulary's {self._vocabulary}"
            )
        document = Document.from_columns(dict(columns))
        real = document.lengths()
        findings.totals += np.array(real, np.int64)
        if lengths is not None and tuple(int(length) for length in lengths) != real:
            raise ValueError(f"its lengths are {real}, and {tuple(lengths.tolist())} is noted")
        np.add.at(findings.counts, targets(document), 1)
        return tokens.size

    def _lengths(
        self, store: ShardStore, shard: int, findings: ShardFindings
    ) -> npt.NDArray[np.uint32] | None:
        try:
            return store.lengths(shard)
        except DataError as error:
            findings.add_fault(str(error))
            return None

    def _open(self, split: str) -> tuple[ShardStore, list[int], list[int]]:
        """A split, where its shards end, and their bytes; there may be very many shards."""
        if split not in self._opened:
            store = self._corpus.store(split, cache=self._setup.cache / split)
            ends = list(itertools.accumulate(store.shard_sizes))
            self._opened[split] = (store, ends, store.shard_bytes)
        return self._opened[split]

    def _forget(self, split: str) -> None:
        """Removes what was fetched: a corpus may be larger than this host's disk."""
        for path in (self._setup.cache / split).glob("*.mds"):
            path.unlink(missing_ok=True)


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
    faults: list[str] = []
    if not isinstance(corpus.manifest.get("vocabulary"), int):
        raise DataError(f"{path}/{MANIFEST_NAME} states no vocabulary; build the corpus again.")
    faults += _beside(corpus)
    with tempfile.TemporaryDirectory(prefix="semicausal-verify-") as cache:
        stores: dict[str, ShardStore] = {}
        for split in corpus.splits:
            try:
                stores[split] = corpus.store(split, cache=Path(cache) / split)
            except DataError as error:
                faults.append(str(error))
        shards = [
            (split, shard)
            for split, store in stores.items()
            for shard in range(len(store.shard_sizes))
        ]
        total = sum(sum(store.shard_bytes) for store in stores.values())
        of_splits = {split: _empty(corpus) for split in stores}
        of_shards: dict[ShardKey, tuple[list[str], bytes]] = {}
        setup = Setup(corpus=corpus, cache=Path(cache))
        with Bar(console, "verifying", total_bytes=total) as bar:
            for key, found in spread(shards, setup, workers=workers, report=bar):
                of_splits[key[0]].add(found)
                of_shards[key] = (found.faults, found.ids)
    for key in shards:
        told, _ = of_shards[key]
        faults += told[:FAULTS_OF_A_SHARD]
        if len(told) > FAULTS_OF_A_SHARD:
            faults.append(f"{key[0]}, shard {key[1]}: {len(told) - FAULTS_OF_A_SHARD:,} more")
    if not any(told for told, _ in of_shards.values()):
        # Sums of what could not be read would only repeat that it could not.
        faults += _sums(corpus, stores, of_splits)
    return faults + _repeated_ids(corpus, {key: of_shards[key][1] for key in shards})


def _empty(corpus: Corpus) -> ShardFindings:
    return ShardFindings(counts=np.zeros(int(corpus.manifest["vocabulary"]), np.int64))


def _beside(corpus: Corpus) -> list[str]:
    """Faults of the files beside the shards."""
    faults: list[str] = []
    places = {corpus.path, *corpus.splits.values()}
    for place in sorted(places):
        try:
            content = inputs.content(f"{place}/{TOKENIZER_NAME}")
            if hashlib.sha256(content).hexdigest() != corpus.manifest.get("tokenizer_sha256"):
                faults.append(f"{place}/{TOKENIZER_NAME} is not the tokenizer of the manifest")
            manifest = inputs.content(f"{place}/{MANIFEST_NAME}")
            if manifest != inputs.content(f"{corpus.path}/{MANIFEST_NAME}"):
                faults.append(f"{place}/{MANIFEST_NAME} is not the manifest of the corpus")
        except DataError as error:
            faults.append(str(error))
    try:
        tokenizer = corpus.tokenizer()
    except DataError as error:
        return [*faults, str(error)]
    return faults + _tokenizer_faults(corpus, tokenizer)


def _tokenizer_faults(corpus: Corpus, tokenizer: CorpusTokenizer) -> list[str]:
    faults: list[str] = []
    if tokenizer.vocabulary != corpus.manifest["vocabulary"]:
        faults.append(
            f"{corpus.path}: the tokenizer has {tokenizer.vocabulary} entries, the manifest says "
            f"{corpus.manifest['vocabulary']}"
        )
    if tokenizer.special.to_manifest() != corpus.manifest.get("special_tokens"):
        faults.append(f"{corpus.path}: the tokenizer's special tokens are not the manifest's")
    return faults


def _sums(
    corpus: Corpus, stores: Mapping[str, ShardStore], found: Mapping[str, ShardFindings]
) -> list[str]:
    """Faults of what the manifest and the counts add up to."""
    faults: list[str] = []
    summaries = corpus.manifest.get("splits", {})
    for split, store in stores.items():
        samples, counts = found[split].samples, found[split].counts
        totals = dict(zip(LENGTH_COLUMNS, found[split].totals.tolist(), strict=True))
        real = {"samples": samples, "documents": samples, "bytes": sum(store.shard_bytes)} | totals
        stated = summaries.get(split, {})
        faults += [
            f"{corpus.splits[split]}: there are {value:,} {name}, and the manifest says "
            f"{stated.get(name)}"
            for name, value in real.items()
            if stated.get(name) != value
        ]
        if split == "train":
            faults += _count_faults(corpus, counts)
    return faults


def _count_faults(corpus: Corpus, counts: npt.NDArray[np.int64]) -> list[str]:
    name = f"{corpus.splits['train']}/{TOKEN_COUNTS_NAME}"
    try:
        with inputs.opened(name) as file:
            stored = np.load(file, allow_pickle=False)
    except (DataError, ValueError, EOFError) as error:
        return [f"{name} cannot be read: {error}"]
    if stored.shape != counts.shape or (stored != counts).any():
        return [f"{name} does not hold how often each token is a target"]
    return []


def _repeated_ids(corpus: Corpus, of_shards: Mapping[ShardKey, bytes]) -> list[str]:
    """Faults of documents that have the id of another."""
    keys = list(of_shards)
    sizes = [len(of_shards[key]) // _ID_BYTES for key in keys]
    ids = np.frombuffer(b"".join(of_shards.values()), dtype=f"V{_ID_BYTES}")
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(ids)))
    ends = np.cumsum(sizes)

    def place(number: int) -> str:
        index = int(np.searchsorted(ends, number, side="right"))
        split, shard = keys[index]
        return f"{split}, shard {shard}, sample {number - int(ends[index]) + sizes[index]}"

    faults = [
        f"{corpus.path}: two documents have one id: {place(int(first[inverse[number]]))} and "
        f"{place(int(number))}"
        for number in repeated[:FAULTS_OF_A_SHARD]
    ]
    if len(repeated) > FAULTS_OF_A_SHARD:
        faults.append(f"{corpus.path}: {len(repeated) - FAULTS_OF_A_SHARD:,} more such documents")
    return faults
