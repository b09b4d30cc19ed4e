"""A small instruction task from documentation: name the subject and title of a passage.

A record is one document: a passage, which is a span for the encoder, then `Subject:` and the
answer, of which only the answer is scored. Learning the form and the frequent subjects takes a
small model few steps; the titles keep it busy for longer.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tools.corpus.documentation import Documentation, Text
from tools.corpus.finished import Corpus
from tools.corpus.made import Made, write_records
from train.errors import DataError

PROMPT: Final = "Subject:"
# Few, so that many documents take part; more where there are fewer documents.
_SECTIONS_PER_DOCUMENT: Final = {"train": 4, "validation": 12}
_LEAST_PASSAGE_TOKENS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Section:
    """A passage and what it is to be called."""

    passage: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """Records of the task.

    Attributes:
        corpus: whose tokenizer and documents are used, each in the split that it has there.
        num_train: training records.
        num_validation: validation records.
        passage_tokens: longest passage.
        cache: keeps downloaded packages.
    """

    corpus: Corpus
    num_train: int
    num_validation: int
    passage_tokens: int
    cache: Path
    name: str = "instruct"

    def __post_init__(self) -> None:
        """Check what was asked for.

        Raises:
            DataError: passages are too short, or the corpus does not tell its documents.
        """
        if self.passage_tokens < _LEAST_PASSAGE_TOKENS:
            raise DataError(
                f"--passage-tokens {self.passage_tokens}: give {_LEAST_PASSAGE_TOKENS} or more."
            )
        if not self._sources:
            raise DataError(
                f"{self.corpus.place} was not built from documentation, as `python -m tools.corpus "
                "build OUT` does; build such a corpus and name it with --corpus."
            )

    @property
    def identity(self) -> str:
        """Of the task and the corpus."""
        asked = [self.num_train, self.num_validation, self.passage_tokens]
        manifest = self.corpus.manifest
        known = [*asked, self._sources, manifest["tokenizer_sha256"]]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def write(self, path: Path, *, report: Callable[[str], None]) -> Made:
        """Write the records.

        Raises:
            DataError: the documents give too few of them, or cannot be had again.
        """
        texts, made = Documentation(sources=self._sources, cache=self.cache).texts(report=report)
        wanted = {"train": self.num_train, "validation": self.num_validation}
        counts: Counter[str] = Counter()

        def records() -> Iterator[dict[str, Any]]:
            for record in self._records(texts):
                if counts[record["split"]] < wanted[record["split"]]:
                    counts[record["split"]] += 1
                    yield record
                if counts == wanted:
                    return

        write_records(path, records())
        for split, number in wanted.items():
            if counts[split] < number:
                raise DataError(
                    f"The documents give only {counts[split]} {split} samples, not {number}: ask "
                    "for fewer with --samples and --validation-samples, or use a larger corpus."
                )
        return made

    @property
    def _sources(self) -> tuple[str, ...]:
        described = self.corpus.manifest.get("sources", [])
        return tuple(part["source"] for source in described for part in source.get("made_of", []))

    def _records(self, texts: list[Text]) -> Iterator[dict[str, Any]]:
        tokenizer = self.corpus.tokenizer().tokenizer
        for text in texts:
            found = islice(sections(text), _SECTIONS_PER_DOCUMENT[text.split])
            for number, section in enumerate(found):
                encoded = tokenizer.encode(section.passage, add_special_tokens=False)
                if len(encoded) < _LEAST_PASSAGE_TOKENS:
                    continue
                _, end = encoded.offsets[min(self.passage_tokens, len(encoded)) - 1]
                yield {
                    "id": f"{text.path}#{number}",
                    "split": text.split,
                    "segments": [
                        {"text": section.passage[:end], "span": True},
                        {"text": PROMPT, "scored": False},
                        {"text": section.answer},
                    ],
                }


def sections(text: Text) -> Iterator[Section]:
    """The sections of a document that have both a title and prose."""
    title = ""
    body: list[str] = []
    for paragraph in [*text.paragraphs, None]:
        if paragraph is None or paragraph.is_title:
            if title and body:
                yield Section(passage=" ".join(body), answer=f"{text.subject}. Title: {title}")
            title, body = ("" if paragraph is None else paragraph.text), []
        else:
            body.append(paragraph.text)
