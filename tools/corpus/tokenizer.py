"""The byte-level BPE of a corpus: trained on it, or given."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.corpus import inputs
from tools.corpus.media import RowError
from tools.corpus.words import counted
from train.data.tokens import (
    SPECIAL_TEXT,
    TOKENIZER_BYTES_AT_MOST,
    SpecialTokens,
    encode_apart,
    read_tokenizer,
)
from train.errors import DataError
from train.storage.place import Place

TOKENIZER_NAME: Final = "tokenizer.json"
DEFAULT_VOCABULARY: Final = 8192
MOST_VOCABULARY: Final = 1 << 24
SMALLEST_VOCABULARY: Final = 256 + len(SPECIAL_TEXT)
"""Holds every byte and the special tokens."""


_TRIED: Final = {
    "capital letters": "The page",
    "spaces": "a  page\tof",
    "ends of lines": "a page\nof",
    "accents": "café",
    "other scripts": "日本語 память",
    "signs": "🙂 ≠ ¶",
}
_EXAMPLES: Final = 3
_SHOWN: Final = 12
"""Characters of a text before and behind a change."""


class ReadBack(BaseModel):
    """How texts of a corpus differ from what their tokens spell.

    Attributes:
        texts: paragraphs and spans that were looked at, some of all.
        changed: how many of them differ: in spaces alone, in case as well, or in characters.
        characters: of those looked at.
        lost_characters: of these, whatever their case, that the tokens do not spell.
        unknown_tokens: of all documents.
        examples: of what was changed most: the document, the text, and what the tokens spell.
    """

    model_config = ConfigDict(extra="forbid")

    texts: int = 0
    changed: dict[str, int] = Field(default_factory=dict)
    characters: int = 0
    lost_characters: int = 0
    unknown_tokens: int = 0
    examples: dict[str, list[tuple[str, str, str]]] = Field(default_factory=dict)

    def look(self, name: str, text: str, back: str) -> None:
        """Compare a text of a document with what its tokens spell."""
        self.texts += 1
        self.characters += len(text)
        found = change(text, back)
        if found is None:
            return
        self.changed[found] = self.changed.get(found, 0) + 1
        if found == "characters":
            lost = Counter(text.casefold()) - Counter(back.casefold())
            self.lost_characters += sum(n for sign, n in lost.items() if not sign.isspace())
        signs = enumerate(zip(text, back, strict=False))
        differs = next(
            (at for at, (one, other) in signs if one != other), min(len(text), len(back))
        )
        some = slice(max(0, differs - _SHOWN), differs + _SHOWN)
        self._show(found, (name, text[some], back[some]))

    def add(self, other: "ReadBack") -> None:
        """Count what another part holds as well."""
        self.texts += other.texts
        self.characters += other.characters
        self.lost_characters += other.lost_characters
        self.unknown_tokens += other.unknown_tokens
        for kind, count in other.changed.items():
            self.changed[kind] = self.changed.get(kind, 0) + count
        for kind, examples in other.examples.items():
            for example in examples:
                self._show(kind, example)

    def _show(self, kind: str, example: tuple[str, str, str]) -> None:
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _EXAMPLES:
            shown.append(example)

    def __str__(self) -> str:
        """What the tokens do not spell; nothing if they spell all."""
        kinds = [kind for kind in ("characters", "case", "spaces") if kind in self.changed]
        facts = [f"{self.changed[kind]:,} differ in {kind}" for kind in kinds]
        if self.lost_characters:
            facts.append(f"{self.lost_characters:,} of {self.characters:,} characters are lost")
        if self.unknown_tokens:
            facts.append(f"{counted(self.unknown_tokens, 'token')} in all documents are unknown")
        if not facts:
            return ""
        told = f"of {counted(self.texts, 'text')} read back {', '.join(facts)}"
        for name, text, back in self.examples.get(kinds[0], [])[:1] if kinds else ():
            told += f"; {text!r} in {name} became {back!r}"
        return told


def change(text: str, back: str, *, strictly: bool = False) -> str | None:
    """In what a text differs from what its tokens spell; strictly, one space more is enough."""
    if back == text or (not strictly and back.strip() == text.strip()):
        return None
    texts = ["".join(each.split()) for each in (text, back)]
    if texts[0] == texts[1]:
        return "spaces"
    return "case" if texts[0].casefold() == texts[1].casefold() else "characters"


@dataclass(frozen=True, kw_only=True, eq=False)
class CorpusTokenizer:
    """A tokenizer and the file that it is stored as.

    Attributes:
        content: of tokenizer.json.
        tokenizer: encodes plain text; `<s>` in a text is three characters, not a token.
        special: ids of the special tokens.
        vocabulary: number of ids.
    """

    content: bytes
    tokenizer: Tokenizer
    special: SpecialTokens
    vocabulary: int

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary: int) -> Self:
        """Learn a byte-level BPE whose first ids are the special tokens.

        Raises:
            DataError: the text is too little for the vocabulary.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIAL_TEXT.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        found = tokenizer.get_vocab_size()
        if found < vocabulary:
            raise DataError(
                f"The text gives a vocabulary of only {found} entries; ask for --vocabulary "
                f"{found} or fewer, or add text."
            )
        return cls.from_content(tokenizer.to_str(pretty=True).encode(), name="the new tokenizer")

    @classmethod
    def from_content(cls, content: bytes, *, name: str) -> Self:
        """Read a tokenizer.json, as `read_tokenizer` does.

        Args:
            content: of the file.
            name: of the file, for messages.

        Raises:
            DataError: it is none, or lacks a special token.
        """
        tokenizer = read_tokenizer(content, name=name)
        ids = tokenizer.get_vocab()
        special = SpecialTokens.from_vocabulary(ids)
        if len({*special.to_manifest().values()}) < len(SPECIAL_TEXT):
            raise DataError(f"{name} gives two of {', '.join(SPECIAL_TEXT.values())} one id.")
        if max(ids.values()) >= MOST_VOCABULARY:
            raise DataError(
                f"{name} has the id {max(ids.values())}, and no model has {MOST_VOCABULARY:,} "
                "tokens; number them from 0."
            )
        # Special whatever the file says of them: only such are kept apart from text.
        tokenizer.add_special_tokens(list(SPECIAL_TEXT.values()))
        tokenizer.encode_special_tokens = True
        return cls(
            content=content,
            tokenizer=tokenizer,
            special=special,
            vocabulary=max(ids.values()) + 1,
        )

    @classmethod
    def from_file(cls, path: Place | Path) -> Self:
        """Read a tokenizer.json, here or in a store.

        Raises:
            DataError: there is none at `path`, or it lacks a special token.
        """
        content = inputs.content(Place.of(path), limit_bytes=TOKENIZER_BYTES_AT_MOST)
        return cls.from_content(content, name=str(path))

    def encode(self, texts: Sequence[str]) -> list[list[int] | RowError]:
        """The ids of each text, or why it has none; a control token may be among them."""
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception, and does not say of which
            if len(texts) == 1:
                return [RowError(f"the tokenizer cannot read its text ({error})")]
            return [ids for text in texts for ids in self.encode([text])]
        return [encoding.ids for encoding in encodings]

    def encode_apart(self, text: str) -> list[int] | RowError:
        """The ids of a text in which `encode` finds a control token, so that it finds none."""
        try:
            return encode_apart(self.tokenizer, text, {*self.special.to_manifest().values()})
        except DataError as error:
            return RowError(str(error))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def lost(self) -> list[str]:
        """What the tokenizer does not read back, tried on a few texts."""
        [*found] = zip(_TRIED.items(), self.encode([*_TRIED.values()]), strict=True)
        return [
            name
            for (name, text), ids in found
            if isinstance(ids, RowError) or change(text, self.decode(ids), strictly=True)
        ]

    @property
    def unknown(self) -> int | None:
        """The id that stands for what has no other; None if there is none."""
        model = json.loads(self.content)["model"]
        number = model.get("unk_id")
        return (
            self.tokenizer.token_to_id(model.get("unk_token") or "") if number is None else number
        )

    @property
    def sha256(self) -> str:
        """Of tokenizer.json."""
        return hashlib.sha256(self.content).hexdigest()
