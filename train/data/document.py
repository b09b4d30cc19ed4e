"""A stored document: segments of text, and spans that an encoder reads.

In a shard a document has the columns `id`, `tokens` (those of all its text segments, one after the
other, without `<s>`; the last is usually `</d>`), `segments` ([k, 3]: kind, size, scored) and, in
corpora with other modalities, `payload` (bytes of their spans, one after the other) and `sizes`
(of each such span four uint32, from which an encoder tells how many slots it takes). Beside each
shard lies what planning needs of its documents, see `LENGTH_COLUMNS` and `ITEM_COLUMNS`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt


class Kind(IntEnum):
    """What a segment is, as stored."""

    TEXT = 0
    """Tokens that the decoder reads."""
    TEXT_SPAN = 1
    """Tokens that the text encoder reads."""
    IMAGE = 2
    """A picture file (PNG, JPEG, ...), as it was."""
    AUDIO = 3
    """A sound file, as it was."""
    VIDEO = 4
    """A video file, as it was."""


# Plain numbers: numpy asks an enumeration for attributes at every comparison, at 2 us each.
_TEXT: Final = int(Kind.TEXT)
_TEXT_SPAN: Final = int(Kind.TEXT_SPAN)
_LAST: Final = int(max(Kind))

MEDIA: Final = {Kind.IMAGE: "image", Kind.AUDIO: "audio", Kind.VIDEO: "video"}
"""Modalities whose spans are stored as files; the encoder decides how many slots one takes."""

KINDS: Final = {name: kind for kind, name in MEDIA.items()}
"""These by name."""

DOCUMENTS_KIND: Final = "documents"
"""`kind` in the manifest of a corpus of documents."""

LENGTHS_NAME: Final = "lengths.json"
"""Lists, beside an index and in its order, the files of lengths, with size and hash."""

LENGTH_COLUMNS: Final = ("tokens", "spans", "span_tokens", "image", "audio", "video")
"""Columns of a shard's lengths, [n, 6] uint32 in .npy: all text tokens; text spans, and the tokens
in them; spans of each other modality."""

SIZES: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.IMAGE: ("height", "width"),
    Kind.AUDIO: ("samples", "rate"),
    Kind.VIDEO: ("frames", "height", "width", "milliseconds"),
}
"""What is recorded of each item of a modality: of a picture its pixels, turned as its EXIF says; of
a sound its samples of one channel, and how many of them a second has; of a video its frames, their
pixels, turned as it says, and how long it is."""

SIZE_NUMBERS: Final = 4
"""Numbers that there is room for in a size; those behind the ones of `SIZES` are 0."""

ITEM_COLUMNS: Final = ("document", "at", "kind", *(f"size_{n}" for n in range(SIZE_NUMBERS)))
"""Columns of a shard's items, [m, 7] uint32 in .npy, in the order of the shard: of each item, which
is a span of another modality, the place of its document in the shard, the tokens of the document
before it, its `Kind` and its size."""


def plain_tokens(columns: Mapping[str, Any]) -> npt.NDArray[Any] | None:
    """The tokens of a document that is one scored text, as most are; None of any other.

    Saves such a document from being taken apart.
    """
    tokens, segments = columns.get("tokens"), columns.get("segments")
    if not isinstance(tokens, np.ndarray) or not isinstance(segments, np.ndarray):
        return None
    is_plain = tokens.ndim == 1 and segments.tolist() == [[_TEXT, tokens.size, 1]]
    return tokens if is_plain and not columns.get("payload") else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """A span of another modality, as it is stored.

    Attributes:
        kind: its modality.
        size: what `SIZES` names of it; zeros where that was not recorded.
        data: the file.
        at: tokens of its document before it.
    """

    kind: Kind
    size: tuple[int, ...]
    data: bytes
    at: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """One document of a corpus.

    Attributes:
        name: what it was called where it came from, such as `wiki/part.jsonl:17`.
        tokens: [T] all text tokens, in spans or not.
        segments: [k, 3] kind, size and whether its tokens are scored, in order; sizes are tokens
            for text and bytes for other modalities.
        payload: the files of spans of other modalities, one after the other.
        sizes: [items, `SIZE_NUMBERS`] of each of them; 0 where none was recorded.
    """

    name: str
    tokens: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]
    payload: bytes = b""
    sizes: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((0, SIZE_NUMBERS), np.int64)
    )

    @classmethod
    def from_columns(cls, columns: dict[str, Any]) -> "Document":
        """A document as decoded from a shard.

        Raises:
            ValueError: the segments do not add up to the tokens, the payload and the sizes.
        """
        segments = np.asarray(columns["segments"], dtype=np.int64)
        if segments.ndim != 2 or segments.shape[1] != 3:
            raise ValueError(f"segments have shape {segments.shape}, not [k, 3]")
        num_items = np.count_nonzero(segments[:, 0] > _TEXT_SPAN)
        # Corpora of earlier versions have none.
        sizes = columns.get("sizes", bytes(4 * SIZE_NUMBERS * num_items))
        document = cls(
            name=str(columns["id"]),
            tokens=np.asarray(columns["tokens"], dtype=np.int64),
            segments=segments,
            payload=bytes(columns.get("payload", b"")),
            sizes=np.frombuffer(sizes, "<u4").astype(np.int64).reshape(-1, SIZE_NUMBERS),
        )
        document._require_whole()
        return document

    @property
    def spans(self) -> npt.NDArray[np.int64]:
        """[k, 2] half-open ranges of the text spans in `tokens`."""
        kinds, sizes, _ = self._text
        is_span = kinds == _TEXT_SPAN
        if not is_span.any():
            return np.zeros((0, 2), dtype=np.int64)
        ends = sizes.cumsum()
        return np.stack([(ends - sizes)[is_span], ends[is_span]], axis=1)

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """[T] whether each token may be a target, as its segment says."""
        _, sizes, scored = self._text
        return np.repeat(scored != 0, sizes)

    def items(self) -> Iterator["Item"]:
        """Its spans of other modalities, in order."""
        sizes = iter(self.sizes.tolist())
        at = byte = 0
        for kind, size, _ in self.segments.tolist():
            if kind <= _TEXT_SPAN:
                at += size
                continue
            kind = Kind(kind)
            numbers = tuple(next(sizes)[: len(SIZES.get(kind, ()))])
            yield Item(kind=kind, size=numbers, data=self.payload[byte : byte + size], at=at)
            byte += size

    def item_rows(self) -> list[tuple[int, ...]]:
        """What `ITEM_COLUMNS` says of its items, but for the document."""
        kinds, sizes = self.segments[:, 0], self.segments[:, 1]
        is_item = kinds > _TEXT_SPAN
        before = np.where(is_item, 0, sizes).cumsum()
        rows = zip(before[is_item].tolist(), kinds[is_item].tolist(), self.sizes, strict=True)
        return [(at, kind, *size.tolist()) for at, kind, size in rows]

    def lengths(self) -> tuple[int, ...]:
        """What `LENGTH_COLUMNS` says of it."""
        spans = self.spans
        counts = (int((self.segments[:, 0] == kind).sum()) for kind in MEDIA)
        inside = int((spans[:, 1] - spans[:, 0]).sum())
        return (len(self.tokens), len(spans), inside, *counts)

    @cached_property
    def _text(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Kinds, sizes and whether scored, of the segments that are text."""
        kinds = self.segments[:, 0]
        return tuple(self.segments[kinds <= _TEXT_SPAN].T)

    def _require_whole(self) -> None:
        kinds, sizes = self.segments[:, 0], self.segments[:, 1]
        if len(self.segments) and (kinds.min() < 0 or kinds.max() > _LAST or sizes.min() < 1):
            raise ValueError("a segment is of an unknown kind or empty")
        in_text = int(self._text[1].sum())
        if self.tokens.ndim != 1 or in_text != len(self.tokens):
            raise ValueError(f"segments count {in_text} tokens, but there are {self.tokens.shape}")
        in_files = int(sizes.sum()) - in_text
        if in_files != len(self.payload):
            raise ValueError(f"segments count {in_files} bytes of {len(self.payload)}")
        num_items = np.count_nonzero(kinds > _TEXT_SPAN)
        if self.sizes.shape != (num_items, SIZE_NUMBERS):
            raise ValueError(f"sizes have shape {self.sizes.shape}, not that of {num_items} items")
