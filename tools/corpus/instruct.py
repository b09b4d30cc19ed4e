"""A small instruction task from documentation: name the subject and title of a passage.

A record is one document: a passage, which is a span for the encoder, `</s>`, then in one paragraph
`Subject:` and the answer, of which only the answer is scored (as `Label:` in section 3.4 of the
paper). Learning the form and the frequent subjects takes a
small model few steps; the titles keep it busy for longer.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tools.corpus.documentation import Documentation, Text
from tools.corpus.finished import Corpus
from tools.corpus.made import Made
from tools.corpus.prose import Paragraph
from train.errors import DataError

PROMPT: Final = "Subject:"
# Few, so that many documents take part; more where there are fewer documents.
_SECTIONS_PER_DOCUMENT: Final = {"train": 4, "validation": 12}
_LEAST_PASSAGE_TOKENS: Final = 16


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
    def names(self) -> tuple[str, ...]:
        """None that other sources could have: a task is built alone."""
        return ()

    @property
    def identity(self) -> str:
        """Of the task and the corpus."""
        asked = (self.num_train, self.num_validation, self.passage_tokens)
        known = (*asked, self._sources, self.corpus.manifest.tokenizer_sha256)
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def make(self, report: Callable[[str], None]) -> Made:
        """Make the records.

        Raises:
            DataError: the documents cannot be had again; or, later, give too few records.
        """
        texts, made = Documentation(sources=self._sources, cache=self.cache).texts(report)
        return replace(made, records=self._records(texts))

    @property
    def _sources(self) -> tuple[str, ...]:
        sources = self.corpus.manifest.sources
        return tuple(part.source for source in sources for part in source.made_of)

    def _records(self, texts: list[Text]) -> Iterator[dict[str, Any]]:
        """As many records as are asked for."""
        tokenizer = self.corpus.tokenizer().tokenizer
        wanted = {"train": self.num_train, "validation": self.num_validation}
        left = dict(wanted)
        for text in texts:
            found = islice(sections(text), _SECTIONS_PER_DOCUMENT[text.split])
            for number, (passage, answer) in enumerate(found):
                if not left[text.split]:
                    break
                encoded = tokenizer.encode(passage, add_special_tokens=False)
                if len(encoded) < _LEAST_PASSAGE_TOKENS:
                    continue
                left[text.split] -= 1
                _, end = encoded.offsets[min(self.passage_tokens, len(encoded)) - 1]
                yield {
                    "id": f"{text.path}#{number}",
                    "split": text.split,
                    "segments": [
                        {"text": passage[:end], "span": True, "ends_paragraph": True},
                        {"text": PROMPT, "scored": False, "ends_paragraph": False},
                        {"text": f" {answer}"},
                    ],
                }
        for split, lacking in left.items():
            if lacking:
                raise DataError(
                    f"The documents give only {wanted[split] - lacking} {split} samples, not "
                    f"{wanted[split]}: ask for fewer with --samples and --validation-samples, or "
                    "use a larger corpus."
                )


def sections(text: Text) -> Iterator[tuple[str, str]]:
    """The passages of a document that have both a title and prose, and what each is called."""
    title = ""
    body: list[str] = []
    for paragraph in [*text.paragraphs, Paragraph("", is_title=True)]:
        if not paragraph.is_title:
            body.append(paragraph.text)
            continue
        if title and body:
            yield " ".join(body), f"{text.subject}. Title: {title}"
        title, body = paragraph.text, []
