"""The special tokens of the text stream, and the tokenizer that makes the others."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Final, Self

from tokenizers import Tokenizer, models

from train.errors import DataError

TOKENIZER_BYTES_AT_MOST: Final = 1 << 28
"""Of a tokenizer.json; those of 250,000 entries have 30 MB."""


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of the four tokens that no text contains; the defaults are those of our own tokenizers.

    Attributes:
        start: `<s>`, the first token of every sequence (and of a span, for the text encoder).
        paragraph: `</s>`, ends a paragraph.
        document: `</d>`, ends a document.
        padding: `<pad>`, fills a sequence; never scored.

    Source: MetaLM §3.2 (`<s>`, `</s>`, `</d>`); `<pad>` is ours.
    """

    start: int = 0
    paragraph: int = 1
    document: int = 2
    padding: int = 3

    @classmethod
    def from_vocabulary(cls, vocabulary: Mapping[str, int]) -> Self:
        """The ids that a tokenizer gives to the four tokens.

        Raises:
            DataError: it lacks one of them.
        """
        missing = [text for text in SPECIAL_TEXT.values() if text not in vocabulary]
        if missing:
            raise DataError(
                f"The tokenizer lacks the special tokens {', '.join(missing)}; add them to its "
                "vocabulary as special tokens, or leave out --tokenizer to train one."
            )
        return cls(**{name: vocabulary[text] for name, text in SPECIAL_TEXT.items()})

    def to_manifest(self) -> dict[str, int]:
        """The ids by name, as a manifest stores them."""
        return asdict(self)


SPECIAL_TEXT: Final = {
    "start": "<s>",
    "paragraph": "</s>",
    "document": "</d>",
    "padding": "<pad>",
}
"""How each special token is spelled, in the order of the ids that we give them."""


def read_tokenizer(content: bytes, *, name: str) -> Tokenizer:
    """A tokenizer that encodes a text whole, alone, and each time alike.

    What its file says of cutting, padding and dropping merges at random is for another training.

    Args:
        content: of a tokenizer.json.
        name: of the file, for messages.

    Raises:
        DataError: it is none.
    """
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"{name} is not a tokenizer.json of the tokenizers library ({error})."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def encode_apart(tokenizer: Tokenizer, text: str, control: Collection[int]) -> list[int]:
    """The ids of a text, none of them a control token.

    The vocabulary of a model may spell `</d>`, or a normalizer make it of other signs. Such a place
    is cut behind its first character, and what lies before and behind is read alone.

    Args:
        tokenizer: that keeps special tokens apart from text (`encode_special_tokens`).
        text: to encode.
        control: ids of the control tokens.

    Raises:
        DataError: it makes a control token of a single character.
    """
    ids: list[int] = []
    waiting = [text]
    while waiting:
        piece = waiting.pop()
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        begins = (
            begin + 1
            for token, (begin, _) in zip(encoding.ids, encoding.offsets, strict=True)
            if token in control
        )
        cuts = sorted(set(begins))
        if not cuts:
            ids += encoding.ids
        elif cuts[-1] >= len(piece):
            raise DataError(f"the tokenizer makes a control token of {piece[cuts[-1] - 1 :]!r}")
        else:
            waiting += reversed(
                [piece[begin:end] for begin, end in pairwise([0, *cuts, len(piece)])]
            )
    return ids
