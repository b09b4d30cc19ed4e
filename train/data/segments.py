"""A document before it has tokens: what the decoder reads, and what encoders read."""

import re
from dataclasses import dataclass
from typing import Final

from train.data.document import Kind

BLANK_LINES: Final = re.compile(r"\n(?:[^\S\n]*\n)+")


@dataclass(frozen=True, kw_only=True)
class TextSegment:
    """Text that the decoder reads, or, as a span, the text encoder.

    Attributes:
        text: paragraphs, which blank lines separate; a span is one.
        is_span: whether the encoder reads it.
        is_scored: whether the decoder learns it.
        ends_paragraph: whether `</s>` follows, or the next segment goes on with the last paragraph.
    """

    text: str
    is_span: bool = False
    is_scored: bool = True
    ends_paragraph: bool = True


@dataclass(frozen=True, kw_only=True)
class MediaSegment:
    """An item, such as a picture: a span of another modality. It is not scored and ends nothing.

    Attributes:
        kind: its modality.
        data: the file.
        size: what `train.data.document.SIZES` names of it.
        name: what it is called in messages; empty: as its document's.
    """

    kind: Kind
    data: bytes
    size: tuple[int, ...] = ()
    name: str = ""


Segment = TextSegment | MediaSegment


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, which blank lines separate; a paragraph keeps its own lines."""
    text = text.replace("\r\n", "\n")
    pieces = (piece.strip("\n").rstrip() for piece in BLANK_LINES.split(text))
    return [piece for piece in pieces if piece]
