"""Prints documents as people read them."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from tools.corpus import media
from tools.corpus.finished import Corpus
from tools.corpus.tokenizer import CorpusTokenizer
from tools.corpus.words import counted
from train.data.document import MEDIA, Document, Kind
from train.data.store.shards import ShardStore
from train.errors import DataError

SPAN_STYLE: Final = "cyan"
UNSCORED_STYLE: Final = "dim"
MEDIA_STYLE: Final = "magenta"
MARK_STYLE: Final = "green"
_CONTROLS: Final = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
"""Pictures of control characters: a text must not steer the terminal that shows it."""


class Printer:
    """Prints samples of a corpus."""

    def __init__(self, corpus: Corpus, split: str, *, console: Console) -> None:
        """Open the split.

        Raises:
            DataError: it, or the tokenizer, is missing or damaged.
        """
        self._corpus = corpus
        self._split = split
        self._console = console
        self._store: ShardStore = corpus.store(split)
        self._tokenizer: CorpusTokenizer = corpus.tokenizer()

    def __len__(self) -> int:
        return len(self._store)

    def number_of(self, name: str) -> int:
        """The place of the document with this id; reads all before it.

        Raises:
            DataError: there is none.
        """
        for number in range(len(self._store)):
            if self._store.columns(number)["id"] == name:
                return number
        raise DataError(f"{self._corpus.path} has no document {name} in {self._split}.")

    def print(self, number: int) -> None:
        """Print one sample.

        Raises:
            DataError: there is no such number, or its shard is damaged.
        """
        if not 0 <= number < len(self._store):
            raise DataError(
                f"{self._split} has samples 0 to {len(self._store) - 1:,}, not {number:,}."
            )
        try:
            document = Document.from_columns(self._store.columns(number))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"Sample {number} of {self._split} is no document ({error}); run verify."
            ) from error
        self._print_document(document, number)

    def _print_document(self, document: Document, number: int) -> None:
        tokens, spans, inside, *counts = document.lengths()
        facts = [f"{self._split} {number:,}", counted(tokens, "token")]
        if spans:
            facts.append(f"{counted(spans, 'span')} of {counted(inside, 'token')}")
        facts += [f"{n} {name}" for n, name in zip(counts, MEDIA.values(), strict=True) if n]
        self._head(document.name, facts)
        body = Text()
        token = byte = 0
        for kind, size, scored in document.segments.tolist():
            if kind in MEDIA:
                data = document.payload[byte : byte + size]
                byte += size
                body.append(f"<{media.describe(Kind(kind), data)}>\n", style=MEDIA_STYLE)
                continue
            ids = document.tokens[token : token + size]
            token += size
            body.append_text(self._text(ids, is_span=kind == Kind.TEXT_SPAN, is_scored=scored != 0))
        self._console.print(body, soft_wrap=True)

    def _head(self, title: str, facts: Sequence[str]) -> None:
        told = Text(f"{title.translate(_CONTROLS)} · {', '.join(facts)}")
        self._console.print(Rule(told, align="left"))

    def _text(self, ids: npt.NDArray[np.int64], *, is_span: bool, is_scored: bool) -> Text:
        """A stretch of text as it is shown."""
        styles = [SPAN_STYLE] if is_span else []
        style = " ".join(styles if is_scored else [*styles, UNSCORED_STYLE])
        shown = Text()
        for piece, is_mark in self._pieces(ids.tolist()):
            shown.append(piece.translate(_CONTROLS), style=MARK_STYLE if is_mark else style)
        if not is_span:
            return shown
        return Text("[[", style=style).append_text(shown).append("]]", style=style)

    def _pieces(self, ids: Sequence[int]) -> Iterator[tuple[str, bool]]:
        """Text, and marks for the special tokens between."""
        special = self._tokenizer.special
        marks = {
            special.start: "<s>",
            special.paragraph: "\n",
            special.document: "</d>\n",
            special.padding: "",
        }
        begin = 0
        for place, token in enumerate([*ids, None]):
            if token is not None and token not in marks:
                continue
            if place > begin:
                yield self._decode(ids[begin:place]), False
            if token is not None:
                yield marks[token], True
            begin = place + 1

    def _decode(self, ids: Sequence[int]) -> str:
        try:
            return self._tokenizer.tokenizer.decode(list(ids), skip_special_tokens=False)
        except OverflowError:  # ids that no tokenizer has
            return f"<{len(ids)} tokens that cannot be decoded>"


def chosen_numbers(printer: Printer, options: Any) -> list[int]:
    """The samples that options ask for: one by number or id, some at random, or the first."""
    if options.number is not None:
        return [options.number]
    if options.id is not None:
        return [printer.number_of(options.id)]
    if options.random is not None:
        count = min(options.random, len(printer))
        return sorted(random.Random(options.seed).sample(range(len(printer)), count))
    return [0]
