"""Documents to tokens and segments, many at a time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tools.corpus.entries import Bad, Entry, MediaPiece, TextPiece
from tools.corpus.finished import targets
from tools.corpus.tokenizer import CorpusTokenizer
from train.data.document import Document, Kind

_BLANK_LINES: Final = re.compile(r"\n(?:[^\S\n]*\n)+")


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A document ready to be stored.

    Attributes:
        columns: of the shard.
        lengths: what `LENGTH_COLUMNS` says of it.
        targets: tokens that may be predicted.
    """

    columns: Mapping[str, Any]
    lengths: tuple[int, ...]
    targets: npt.NDArray[Any]


class Encoder:
    """Encodes documents with a corpus's tokenizer."""

    def __init__(self, tokenizer: CorpusTokenizer, *, has_media: bool) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: of the corpus.
            has_media: whether documents are stored with a payload.
        """
        self._encode = tokenizer.tokenizer.encode_batch_fast
        self._special = tokenizer.special
        self._dtype = tokenizer.dtype
        self._has_media = has_media

    @property
    def columns(self) -> dict[str, str]:
        """The columns of shards and how they are encoded."""
        columns = {
            "id": "str",
            "segments": "ndarray:int32",
            "tokens": f"ndarray:{np.dtype(self._dtype).name}",
        }
        return {**columns, "payload": "bytes"} if self._has_media else columns

    def __call__(self, entries: Sequence[Entry]) -> list[Encoded | Bad]:
        """Encode documents, all texts in one call of the tokenizer."""
        texts: list[str] = []
        counts: list[int] = []
        for entry in entries:
            for piece in entry.pieces:
                if isinstance(piece, TextPiece):
                    found = [piece.text] if piece.is_span else paragraphs(piece.text)
                    texts += found
                    counts.append(len(found))
        encodings = iter(self._encode(texts, add_special_tokens=False))
        sizes = iter(counts)
        result: list[Encoded | Bad] = []
        for entry in entries:
            text_ids = [
                [next(encodings).ids for _ in range(next(sizes))]
                for piece in entry.pieces
                if isinstance(piece, TextPiece)
            ]
            result.append(self._document(entry, text_ids))
        return result

    def _document(self, entry: Entry, text_ids: list[list[list[int]]]) -> Encoded | Bad:
        tokens: list[int] = []
        segments: list[tuple[int, int, int]] = []
        payload: list[bytes] = []
        paragraph = self._special.paragraph
        texts = iter(text_ids)
        for piece in entry.pieces:
            if isinstance(piece, MediaPiece):
                segments.append((piece.kind, len(piece.data), 0))
                payload.append(piece.data)
                continue
            begin = len(tokens)
            for ids in next(texts):
                tokens += ids
                if not piece.is_span and ids:
                    tokens.append(paragraph)
            if len(tokens) > begin:
                kind = Kind.TEXT_SPAN if piece.is_span else Kind.TEXT
                segments.append((kind, len(tokens) - begin, piece.is_scored))
        if not segments:
            return Bad(where=entry.id, reason="the tokenizer makes no tokens of its text")
        if payload and not self._has_media:
            return Bad(
                where=entry.id,
                reason="it has an image, audio or video, which no source showed in its first "
                "rows: build again with --media",
            )
        _end(tokens, segments, self._special.document)
        return self._encoded(entry.id, tokens, segments, b"".join(payload))

    def _encoded(
        self, name: str, ids: list[int], segments: list[tuple[int, int, int]], payload: bytes
    ) -> Encoded:
        tokens = np.array(ids, dtype=self._dtype)
        stored = np.array(segments, dtype=np.int32)
        columns: dict[str, Any] = {"id": name, "tokens": tokens, "segments": stored}
        if self._has_media:
            columns["payload"] = payload
        if all(kind == Kind.TEXT and scored for kind, _, scored in segments):
            # Most documents are plain text, for which nothing has to be looked at again.
            return Encoded(columns=columns, lengths=(len(ids), 0, 0, 0, 0, 0), targets=tokens)
        document = Document.from_columns(columns)
        return Encoded(columns=columns, lengths=document.lengths(), targets=targets(document))


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, which blank lines separate; a paragraph keeps its own lines."""
    text = text.replace("\r\n", "\n")
    pieces = (piece.strip("\n").rstrip() for piece in _BLANK_LINES.split(text))
    return [piece for piece in pieces if piece]


def _end(tokens: list[int], segments: list[tuple[int, int, int]], document: int) -> None:
    """Add `</d>`: to the text that ends the document, or as text of its own after a span."""
    tokens.append(document)
    kind, size, is_scored = segments[-1]
    if kind == Kind.TEXT:
        segments[-1] = (kind, size + 1, is_scored)
    else:
        segments.append((Kind.TEXT, 1, 1))
