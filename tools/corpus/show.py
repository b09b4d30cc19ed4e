"""Prints documents as people read them."""

import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from tools.corpus import media
from tools.corpus.finished import Corpus
from tools.corpus.words import counted
from train.data.document import MEDIA, Document, Kind
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
        self._store = corpus.store(split)
        self._tokenizer = corpus.tokenizer()

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
        raise DataError(f"{self._corpus.place} has no document {name} in {self._split}.")

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
        tokens, spans, inside, *counts = document.lengths()
        facts = [f"{self._split} {number:,}", counted(tokens, "token")]
        if spans:
            facts.append(f"{counted(spans, 'span')} of {counted(inside, 'token')}")
        facts += [f"{n} {name}" for n, name in zip(counts, MEDIA.values(), strict=True) if n]
        head = Text(f"{document.name.translate(_CONTROLS)} · {', '.join(facts)}")
        self._console.print(Rule(head, align="left"))
        body = Text()
        token = byte = 0
        for kind, size, scored in document.segments.tolist():
            if kind in MEDIA:
                data = document.payload[byte : byte + size]
                byte += size
                body.append(f"<{media.describe(Kind(kind), data)}>\n", style=MEDIA_STYLE)
            else:
                ids = document.tokens[token : token + size].tolist()
                token += size
                is_span = kind == Kind.TEXT_SPAN
                body.append_text(self._text(ids, is_span=is_span, is_scored=scored != 0))
        self._console.print(body, soft_wrap=True)

    def _text(self, ids: Sequence[int], *, is_span: bool, is_scored: bool) -> Text:
        """A stretch of text as it is shown, with marks for the special tokens in it."""
        style = " ".join([SPAN_STYLE] * is_span + [UNSCORED_STYLE] * (not is_scored))
        special = self._tokenizer.special
        marks = {
            special.start: "<s>",
            special.paragraph: "\n",
            special.document: "</d>\n",
            special.padding: "",
        }
        shown = Text("[[", style=style) if is_span else Text()
        for mark, some in groupby(ids, marks.get):
            if mark is None:
                shown.append(self._decode(list(some)).translate(_CONTROLS), style=style)
            else:
                shown.append(mark * len(list(some)), style=MARK_STYLE)
        return shown.append("]]", style=style) if is_span else shown

    def _decode(self, ids: list[int]) -> str:
        try:
            return self._tokenizer.tokenizer.decode(ids, skip_special_tokens=False)
        except OverflowError:  # ids that no tokenizer has
            return f"<{len(ids)} tokens that cannot be decoded>"


def chosen_numbers(printer: Printer, options: Any) -> list[int]:
    """The samples that options ask for: some at random, or one by its id or its number.

    Raises:
        DataError: there are none such.
    """
    if options.random is not None:
        count = min(options.random, len(printer))
        return sorted(random.Random(options.seed).sample(range(len(printer)), count))
    return [options.number or 0 if options.id is None else printer.number_of(options.id)]
