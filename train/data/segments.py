"""Text of a document before it has tokens: what the decoder reads, and what an encoder reads."""

from dataclasses import dataclass


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
