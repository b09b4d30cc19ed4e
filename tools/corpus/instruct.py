"""A small instruction task from documentation: name the subject and title of a passage.

A sample is one document, `<s>` passage `</s>` `Subject:` answer `</s>` `</d>`, padded. The passage
is a span for the encoder; only the answer and what ends it are scored. Learning the form and the
frequent subjects takes a small model few steps; the titles keep it busy for longer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from tools.corpus.build import SPLIT_RULE, Prose, keep_licences, load_sources, read_prose
from tools.corpus.place import (
    FORMAT_VERSION,
    SPLITS,
    TOKENIZER_NAME,
    Place,
    finish,
    write_split,
)
from tools.corpus.tokenizer import CorpusTokenizer
from train.data.store.shards import ShardStore
from train.errors import DataError

PROMPT: Final = "Subject:"
# Few, so that many documents take part; more where there are fewer documents.
_SECTIONS_PER_DOCUMENT: Final = {"train": 4, "validation": 12}
_LEAST_PASSAGE_TOKENS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Order:
    """What task is wanted.

    Attributes:
        corpus: directory or URL of the corpus whose tokenizer, sources and split are used.
        num_train: training samples.
        num_validation: validation samples, from documents that the corpus holds out too.
        passage_tokens: longest passage; None is a quarter of a sequence.
    """

    corpus: str
    num_train: int = 4000
    num_validation: int = 300
    passage_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A passage and what it is to be called."""

    passage: str
    answer: str


def build(out: str, order: Order, *, cache: Path, console: Console) -> dict[str, Any]:
    """Build the task, unless the very same is there already.

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
    store = ShardStore(f"{order.corpus.rstrip('/')}/train")
    content = store.read_beside(TOKENIZER_NAME)
    if content is None or "recipe" not in store.manifest:
        raise DataError(
            f"{order.corpus} was not built by `python -m tools.corpus build`, so its sources are "
            "not known; build one and name it with --corpus."
        )
    store.require(sequence_tokens=store.manifest["sequence_tokens"])
    sequence_tokens = int(store.manifest["sequence_tokens"])
    passage_tokens = order.passage_tokens or sequence_tokens // 4
    if not _LEAST_PASSAGE_TOKENS <= passage_tokens <= sequence_tokens // 2:
        raise DataError(
            f"Passages of {passage_tokens} tokens do not suit sequences of {sequence_tokens}: set "
            f"--passage-tokens between {_LEAST_PASSAGE_TOKENS} and {sequence_tokens // 2}, or use "
            "a corpus of longer sequences."
        )
    recipe = {
        "format_version": FORMAT_VERSION,
        "kind": "instruction",
        "corpus_recipe": store.manifest["recipe"],
        "tokenizer": store.manifest["tokenizer_sha256"],
        "num_train": order.num_train,
        "num_validation": order.num_validation,
        "passage_tokens": passage_tokens,
    }
    place = Place(out=out, scratch=cache)
    with place.lock():
        manifest = place.finished(recipe)
        if manifest is not None:
            console.print(f"{out} is already built")
            return manifest
        tokenizer = CorpusTokenizer.from_content(content, name=f"{order.corpus}/{TOKENIZER_NAME}")
        with (
            Progress(console=console, transient=True) as progress,
            place.fill(report=lambda text: progress.console.print(text)) as directory,
        ):
            manifest = _build(
                directory,
                recipe,
                tokenizer,
                store.manifest,
                sequence_tokens=sequence_tokens,
                cache=cache,
                progress=progress,
            )
    return manifest


def sections(text: Prose) -> Iterator[Section]:
    """The sections of a document that have both a title and prose."""
    title = ""
    body: list[str] = []
    for paragraph in [*text.paragraphs, None]:
        if paragraph is None or paragraph.is_title:
            if title and body:
                yield Section(
                    passage=" ".join(body), answer=f" {text.document.subject}. Title: {title}"
                )
            title, body = ("" if paragraph is None else paragraph.text), []
        else:
            body.append(paragraph.text)


def sample(
    *,
    passage: npt.NDArray[np.int64],
    prompt: npt.NDArray[np.int64],
    answer: npt.NDArray[np.int64],
    tokenizer: CorpusTokenizer,
    sequence_tokens: int,
) -> dict[str, npt.NDArray[Any]] | None:
    """One document of the task as it is stored, or None if it is longer than a sequence.

    Returns:
        `tokens` [S + 1], `spans` [1, 2] (the passage), `scored` [S + 1].
    """
    special = tokenizer.special
    before = np.concatenate(([special.start], passage, [special.paragraph], prompt))
    scored = np.concatenate((answer, [special.paragraph, special.document]))
    length = before.size + scored.size
    if length > sequence_tokens + 1:
        return None
    tokens = np.full(sequence_tokens + 1, special.padding, dtype=tokenizer.dtype)
    tokens[: before.size] = before
    tokens[before.size : length] = scored
    is_scored = np.zeros(sequence_tokens + 1, dtype=np.uint8)
    is_scored[before.size : length] = 1
    return {
        "tokens": tokens,
        "spans": np.array([[1, 1 + passage.size]], dtype=np.int32),
        "scored": is_scored,
    }


def _build(
    directory: Path,
    recipe: Mapping[str, Any],
    tokenizer: CorpusTokenizer,
    corpus: Mapping[str, Any],
    *,
    sequence_tokens: int,
    cache: Path,
    progress: Progress,
) -> dict[str, Any]:
    sources = load_sources(corpus["source_names"], cache=cache, progress=progress)
    splits = read_prose(sources, progress=progress)
    summary: dict[str, dict[str, int]] = {}
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for split in SPLITS:
        wanted = recipe[f"num_{split}"]
        samples = _samples(
            splits[split],
            tokenizer,
            sections_per_document=_SECTIONS_PER_DOCUMENT[split],
            passage_tokens=recipe["passage_tokens"],
            sequence_tokens=sequence_tokens,
        )
        num_samples, counts[split] = write_split(
            directory / split,
            islice(samples, wanted),
            columns={
                "tokens": f"ndarray:{np.dtype(tokenizer.dtype).name}",
                "spans": "ndarray:int32",
                "scored": "ndarray:uint8",
            },
            vocabulary=tokenizer.vocabulary,
        )
        if num_samples < wanted:
            raise DataError(
                f"The documents give only {num_samples} {split} samples, not {wanted}: ask for "
                "fewer with --samples and --validation-samples, or use a larger corpus."
            )
        summary[split] = {"samples": num_samples, "scored_tokens": int(counts[split].sum())}
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": "instruction",
        "task": "name the subject and title of a passage",
        "tokenizer_sha256": tokenizer.sha256,
        "vocabulary": tokenizer.vocabulary,
        "sequence_tokens": sequence_tokens,
        "special_tokens": tokenizer.special.to_manifest(),
        "splits": summary,
        "split_rule": SPLIT_RULE,
        "sources": [source.manifest for source in sources],
        "source_names": corpus["source_names"],
        "recipe": dict(recipe),
    }
    keep_licences(directory, sources)
    finish(directory, manifest, tokenizer=tokenizer.content, token_counts=counts["train"])
    return manifest


def _samples(
    texts: Sequence[Prose],
    tokenizer: CorpusTokenizer,
    *,
    sections_per_document: int,
    passage_tokens: int,
    sequence_tokens: int,
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    prompt = tokenizer.encode([PROMPT])[0]
    for text in texts:
        found = list(islice(sections(text), sections_per_document))
        passages = tokenizer.encode([section.passage for section in found])
        answers = tokenizer.encode([section.answer for section in found])
        for passage, answer in zip(passages, answers, strict=True):
            if passage.size < _LEAST_PASSAGE_TOKENS:
                continue
            stored = sample(
                passage=passage[:passage_tokens],
                prompt=prompt,
                answer=answer,
                tokenizer=tokenizer,
                sequence_tokens=sequence_tokens,
            )
            if stored is not None:
                yield stored
