"""Builds a pretraining corpus: sources to prose to tokens to shards."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from tools.corpus import prose
from tools.corpus.packing import Tokens, document_tokens, pack
from tools.corpus.place import FORMAT_VERSION, SPLITS, Place, finish, write_split
from tools.corpus.sources import (
    PACKAGES,
    VALIDATION_SHARE,
    Document,
    Source,
    identity,
    load,
)
from tools.corpus.tokenizer import DEFAULT_VOCABULARY, CorpusTokenizer, check_vocabulary
from train.errors import DataError

SPLIT_RULE: Final = (
    f"a document is validation if SHA-256('split:' + path), as a fraction, is < {VALIDATION_SHARE}"
)
PACKING_RULE: Final = "stream cut every S tokens, each sequence beginning with <s>; no padding"
_PARAGRAPHS_AT_ONCE: Final = 8192


@dataclass(frozen=True, kw_only=True)
class Order:
    """What corpus is wanted.

    Attributes:
        sources: keys of `PACKAGES`, or directories of text.
        vocabulary: entries of the tokenizer; None takes the given tokenizer's, or 8192.
        sequence_tokens: S; samples hold S + 1.
        tokenizer: a tokenizer.json to use instead of training one.
        limit_megabytes: of training text; None for all there is.
    """

    sources: Sequence[str] = tuple(PACKAGES)
    vocabulary: int | None = None
    sequence_tokens: int = 256
    tokenizer: Path | None = None
    limit_megabytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Prose:
    """A document reduced to its paragraphs."""

    document: Document
    paragraphs: list[prose.Paragraph]

    @property
    def num_characters(self) -> int:
        """Of text, without markup."""
        return sum(len(paragraph.text) for paragraph in self.paragraphs)


def build(out: str, order: Order, *, cache: Path, console: Console) -> dict[str, Any]:
    """Build a corpus, unless the very same is there already.

    Args:
        out: directory or URL.
        order: what is wanted.
        cache: keeps downloaded packages.
        console: where progress and warnings are shown.

    Returns:
        The manifest.

    Raises:
        DataError: another corpus is there, or this one cannot be built; nothing is left behind.
    """
    if order.sequence_tokens < 2:
        raise DataError(f"Sequences need 2 tokens or more, not {order.sequence_tokens}.")
    given = None if order.tokenizer is None else CorpusTokenizer.from_file(order.tokenizer)
    vocabulary = _vocabulary(order, given)
    recipe = {
        "format_version": FORMAT_VERSION,
        "kind": "pretraining",
        "sources": [identity(name) for name in order.sources],
        "tokenizer": "trained" if given is None else given.sha256,
        "vocabulary": vocabulary,
        "sequence_tokens": order.sequence_tokens,
        "limit_megabytes": order.limit_megabytes,
        "prose_version": prose.VERSION,
    }
    place = Place(out=out, scratch=cache)
    with place.lock():
        manifest = place.finished(recipe)
        if manifest is not None:
            console.print(f"{out} is already built")
            return manifest
        with (
            Progress(console=console, transient=True) as progress,
            place.fill(report=lambda text: progress.console.print(text)) as directory,
        ):
            manifest = _build(directory, order, recipe, given, cache=cache, progress=progress)
    return manifest


def load_sources(names: Sequence[str], *, cache: Path, progress: Progress) -> list[Source]:
    """Read sources, showing progress and warnings.

    Raises:
        DataError: one is unknown or cannot be had.
    """
    sources: list[Source] = []
    task = progress.add_task("sources", total=len(names))
    for name in names:
        progress.update(task, description=f"reading {name}")
        source = load(name, cache=cache, report=progress.console.print)
        for warning in source.warnings:
            progress.console.print(f"[yellow]warning:[/yellow] {warning}")
        sources.append(source)
        progress.advance(task)
    progress.update(task, description="sources read")
    return sources


def read_prose(sources: Sequence[Source], *, progress: Progress) -> dict[str, list[Prose]]:
    """The documents of each split that hold prose, all sources mixed by hash of path."""
    documents = [document for source in sources for document in source.documents]
    # Neighbours are then unrelated, and a corpus cut short still has every subject.
    documents.sort(key=lambda document: hashlib.sha256(document.path.encode()).digest())
    splits: dict[str, list[Prose]] = {split: [] for split in SPLITS}
    for document in progress.track(documents, description="finding prose"):
        paragraphs = prose.paragraphs(document.text)
        if any(not paragraph.is_title for paragraph in paragraphs):
            split = "validation" if document.is_validation else "train"
            splits[split].append(Prose(document=document, paragraphs=paragraphs))
    return splits


def _build(
    directory: Path,
    order: Order,
    recipe: dict[str, Any],
    given: CorpusTokenizer | None,
    *,
    cache: Path,
    progress: Progress,
) -> dict[str, Any]:
    sources = load_sources(order.sources, cache=cache, progress=progress)
    splits = read_prose(sources, progress=progress)
    if order.limit_megabytes is not None:
        splits = _limited(splits, limit_bytes=order.limit_megabytes * 1e6)
    tokenizer = given
    if tokenizer is None:
        task = progress.add_task("training the tokenizer", total=None)
        tokenizer = CorpusTokenizer.train(
            (paragraph.text for text in splits["train"] for paragraph in text.paragraphs),
            vocabulary=recipe["vocabulary"],
        )
        progress.remove_task(task)
    counts: dict[str, npt.NDArray[np.int64]] = {}
    summary: dict[str, dict[str, int]] = {}
    for split, texts in splits.items():
        sequences = pack(
            progress.track(
                _encoded(texts, tokenizer), total=len(texts), description=f"writing {split}"
            ),
            sequence_tokens=order.sequence_tokens,
            special=tokenizer.special,
        )
        num_samples, counts[split] = write_split(
            directory / split,
            ({"tokens": sequence.astype(tokenizer.dtype)} for sequence in sequences),
            columns={"tokens": f"ndarray:{np.dtype(tokenizer.dtype).name}"},
            vocabulary=tokenizer.vocabulary,
        )
        if num_samples == 0:
            raise DataError(
                f"There is too little text for one {split} sequence of {order.sequence_tokens} "
                "tokens: add sources, raise --limit-megabytes, or lower --sequence-tokens."
            )
        summary[split] = {
            "documents": len(texts),
            "characters": sum(text.num_characters for text in texts),
            "samples": num_samples,
            "tokens": int(counts[split].sum()),
        }
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": "pretraining",
        "tokenizer_sha256": tokenizer.sha256,
        "vocabulary": tokenizer.vocabulary,
        "sequence_tokens": order.sequence_tokens,
        "special_tokens": tokenizer.special.to_manifest(),
        "splits": summary,
        "split_rule": SPLIT_RULE,
        "packing_rule": PACKING_RULE,
        "sources": [source.manifest for source in sources],
        "source_names": list(order.sources),
        "recipe": recipe,
    }
    keep_licences(directory, sources)
    finish(directory, manifest, tokenizer=tokenizer.content, token_counts=counts["train"])
    return manifest


def keep_licences(directory: Path, sources: Sequence[Source]) -> None:
    """Write each source's copyright file into `licences/`."""
    for source in sources:
        if source.licence_text is not None:
            path = directory / "licences" / f"{source.manifest['name']}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(source.licence_text, encoding="utf-8")


def _vocabulary(order: Order, given: CorpusTokenizer | None) -> int:
    if given is None:
        vocabulary = order.vocabulary or DEFAULT_VOCABULARY
        check_vocabulary(vocabulary)
        return vocabulary
    if order.vocabulary not in (None, given.vocabulary):
        raise DataError(
            f"{order.tokenizer} has {given.vocabulary} entries, not {order.vocabulary}; leave out "
            "--vocabulary."
        )
    return given.vocabulary


def _limited(splits: dict[str, list[Prose]], *, limit_bytes: float) -> dict[str, list[Prose]]:
    """The first documents of each split up to the limit, at least one of each."""
    shares = {"train": 1.0, "validation": VALIDATION_SHARE}
    limited: dict[str, list[Prose]] = {}
    for split, texts in splits.items():
        limited[split] = []
        total = 0
        for text in texts:
            if total >= limit_bytes * shares[split]:
                break
            limited[split].append(text)
            total += text.num_characters
    return limited


def _encoded(texts: Sequence[Prose], tokenizer: CorpusTokenizer) -> Iterator[Tokens]:
    """The stream of each document; many paragraphs are encoded at once, to keep all cores busy."""
    waiting: list[Prose] = []
    num_paragraphs = 0
    for number, text in enumerate(texts):
        waiting.append(text)
        num_paragraphs += len(text.paragraphs)
        if num_paragraphs < _PARAGRAPHS_AT_ONCE and number + 1 < len(texts):
            continue
        encoded = iter(
            tokenizer.encode([paragraph.text for text in waiting for paragraph in text.paragraphs])
        )
        for done in waiting:
            yield document_tokens([next(encoded) for _ in done.paragraphs], tokenizer.special)
        waiting, num_paragraphs = [], 0
