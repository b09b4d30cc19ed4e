"""Documents to tokens and segments, many at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tools.corpus.entries import Entry
from tools.corpus.media import RowError
from tools.corpus.tokenizer import CorpusTokenizer, ReadBack
from train.data.document import SIZE_NUMBERS, Document, Kind
from train.data.segments import MediaSegment, Segment, TextSegment, paragraphs

_ALL_LOOKED_AT: Final = 128
_LOOKED_AT_EVERY: Final = 64
"""Of texts behind the first; decoding takes a fifth of the time of encoding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A document ready to be stored.

    Attributes:
        columns: of the shard.
        lengths: what `LENGTH_COLUMNS` says of it.
        targets: tokens that may be predicted.
        items: what `ITEM_COLUMNS` says of each item, but for the document.
    """

    columns: Mapping[str, Any]
    lengths: tuple[int, ...]
    targets: npt.NDArray[Any]
    items: Sequence[tuple[int, ...]] = ()


class Encoder:
    """Encodes documents with a corpus's tokenizer.

    Attributes:
        columns: of shards, and how they are encoded.
        read_back: how what was encoded differs from what the tokens spell.
    """

    def __init__(self, tokenizer: CorpusTokenizer, *, has_media: bool) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: of the corpus.
            has_media: whether documents are stored with a payload.
        """
        self._tokenizer = tokenizer
        self._special = tokenizer.special
        self._is_control = np.zeros(tokenizer.vocabulary, dtype=bool)
        self._is_control[[*tokenizer.special.to_manifest().values()]] = True
        self._unknown = tokenizer.unknown
        self.read_back = ReadBack()
        self._num_texts = 0
        self._dtype = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
        self._has_media = has_media
        self.columns = {
            "id": "str",
            "segments": "ndarray:int32",
            "tokens": f"ndarray:{np.dtype(self._dtype).name}",
            **({"payload": "bytes", "sizes": "bytes"} if has_media else {}),
        }

    def __call__(self, entries: Sequence[Entry]) -> list[Encoded | RowError]:
        """Encode documents, all texts in one call of the tokenizer."""
        texts = [[_texts(piece) for piece in entry.pieces] for entry in entries]
        flat = [text for of_entry in texts for of_piece in of_entry for text in of_piece]
        ids = self._tokenizer.encode(flat)
        following = iter(ids)
        found = [
            self._document(entry, [[next(following) for _ in piece] for piece in of_entry])
            for entry, of_entry in zip(entries, texts, strict=True)
        ]
        for number, document in enumerate(found):
            if document is None:  # a text of it spells a control token
                apart = [
                    [self._tokenizer.encode_apart(t) for t in piece] for piece in texts[number]
                ]
                again = self._document(entries[number], apart)
                assert again is not None, "read apart, no text spells one"
                found[number] = again
        self._look_back(entries, texts, ids)
        return [document for document in found if document is not None]

    def _look_back(
        self,
        entries: Sequence[Entry],
        texts: list[list[list[str]]],
        ids: Sequence[list[int] | RowError],
    ) -> None:
        """Compare some texts, the first and then now and then one, with what their tokens spell."""
        names = (
            (entry.id, text)
            for entry, of_entry in zip(entries, texts, strict=True)
            for of_piece in of_entry
            for text in of_piece
        )
        for number, ((name, text), of_text) in enumerate(
            zip(names, ids, strict=True), self._num_texts
        ):
            is_looked_at = number < _ALL_LOOKED_AT or number % _LOOKED_AT_EVERY == 0
            if is_looked_at and not isinstance(of_text, RowError):
                self.read_back.look(name, text, self._tokenizer.decode(of_text))
        self._num_texts += len(ids)

    def _document(
        self, entry: Entry, ids: list[list[list[int] | RowError]]
    ) -> Encoded | RowError | None:
        """A document of the ids of each text of each piece; None if one is a control token."""
        ends = 0
        tokens: list[int] = []
        segments: list[tuple[int, int, int]] = []
        payload: list[bytes] = []
        sizes: list[tuple[int, ...]] = []
        for piece, of_piece in zip(entry.pieces, ids, strict=True):
            if isinstance(piece, MediaSegment):
                segments.append((piece.kind, len(piece.data), 0))
                payload.append(piece.data)
                sizes.append((*piece.size, *[0] * (SIZE_NUMBERS - len(piece.size))))
                continue
            found: list[list[int]] = []
            for of_text in of_piece:
                if isinstance(of_text, RowError):
                    return of_text
                if of_text:
                    found.append(of_text)
            if not found:
                continue
            ends += len(found)
            begin = len(tokens)
            for of_text in found:
                tokens += [*of_text, self._special.paragraph]
            if piece.is_span or not piece.ends_paragraph:
                tokens.pop()
                ends -= 1
            kind = Kind.TEXT_SPAN if piece.is_span else Kind.TEXT
            segments.append((kind, len(tokens) - begin, piece.is_scored))
            if piece.is_span and piece.ends_paragraph:
                tokens.append(self._special.paragraph)
                ends += 1
                segments.append((Kind.TEXT, 1, 0))
        if not segments:
            return RowError("the tokenizer makes no tokens of its text")
        if payload and not self._has_media:
            return RowError(
                "it has an image, audio or video, which no source showed in its first rows: build "
                "again with --media"
            )
        # `</d>` belongs to the text that ends the document, or is text of its own after a span.
        tokens.append(self._special.document)
        kind, size, is_scored = segments[-1]
        if kind == Kind.TEXT:
            segments[-1] = (kind, size + 1, is_scored)
        else:
            segments.append((Kind.TEXT, 1, 1))
        stored = np.array(tokens, dtype=self._dtype)
        if np.count_nonzero(self._is_control[stored]) > ends + 1:
            return None
        if self._unknown is not None:
            self.read_back.unknown_tokens += np.count_nonzero(stored == self._unknown)
        columns: dict[str, Any] = {
            "id": entry.id,
            "tokens": stored,
            "segments": np.array(segments, dtype=np.int32),
        }
        if self._has_media:
            columns["payload"] = b"".join(payload)
            columns["sizes"] = np.array(sizes, dtype="<u4").tobytes()
        if all(kind == Kind.TEXT and scored for kind, _, scored in segments):
            # Most documents are plain text, for which nothing has to be looked at again.
            lengths = (len(tokens), 0, 0, 0, 0, 0)
            return Encoded(columns=columns, lengths=lengths, targets=columns["tokens"])
        document = Document.from_columns(columns)
        return Encoded(
            columns=columns,
            lengths=document.lengths(),
            targets=targets(document),
            items=document.item_rows(),
        )


def targets(document: Document) -> npt.NDArray[np.int64]:
    """The tokens of a document that may be predicted: of a span its first at most."""
    may_be = document.scored
    for begin, end in document.spans:
        may_be[begin + 1 : end] = False
    return document.tokens[may_be]


def _texts(piece: Segment) -> list[str]:
    """What is encoded of a piece."""
    if not isinstance(piece, TextSegment):
        return []
    return [piece.text] if piece.is_span else paragraphs(piece.text)
