"""The byte-level BPE of a corpus: trained on it, or given."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.corpus import inputs
from train.data.tokens import SPECIAL_TEXT, SpecialTokens, read_tokenizer
from train.errors import DataError
from train.storage.place import Place

TOKENIZER_NAME: Final = "tokenizer.json"
DEFAULT_VOCABULARY: Final = 8192
SMALLEST_VOCABULARY: Final = 256 + len(SPECIAL_TEXT)
"""Holds every byte and the special tokens."""


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
        return cls.from_content(inputs.content(Place.of(path)), name=str(path))

    @property
    def sha256(self) -> str:
        """Of tokenizer.json."""
        return hashlib.sha256(self.content).hexdigest()
