"""Documents before they have tokens: texts and payloads, as a record gives them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from tools.corpus import media
from tools.corpus.media import RowError
from train.data.document import KINDS, MEDIA, Kind
from train.data.payload import payload
from train.data.segments import MediaSegment, Segment, TextSegment

CAPTION_FIELD: Final = "caption"
SEGMENTS_FIELD: Final = "segments"
_SEGMENT_KEYS: Final = {"text", "span", "scored", "ends_paragraph", *KINDS}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A document to be.

    Attributes:
        id: unique in the corpus: source, file, and row where there are rows.
        pieces: in order.
        split: where it belongs; None where its id says.

    Raises:
        RowError: there is nothing in it but white space.
    """

    id: str
    pieces: tuple[Segment, ...]
    split: str | None = None

    def __post_init__(self) -> None:
        """Refuse an empty one."""
        if not any(isinstance(piece, MediaSegment) or piece.text.strip() for piece in self.pieces):
            raise RowError("the document is empty")

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        return sum(len(p.text if isinstance(p, TextSegment) else p.data) for p in self.pieces)

    @property
    def has_media(self) -> bool:
        """Whether it has a payload."""
        return any(isinstance(piece, MediaSegment) for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of columns.

    Attributes:
        text: holds the text of a document, or the caption of its image, audio or video.
        id: holds what a document is called; None to call it by file and row.
        only: values by the field that must have one of them, or by its path through objects, such
            as `meta.pile_set_name`; rows with others are passed over.
    """

    text: str = "text"
    id: str | None = None
    only: Mapping[str, Collection[str]] = field(default_factory=dict)

    @property
    def wanted(self) -> set[str]:
        """Columns that make a document; others are not read."""
        names = {self.text, CAPTION_FIELD, SEGMENTS_FIELD, *KINDS}
        names |= {name for path in self.only for name in (path, path.partition(".")[0])}
        return names if self.id is None else {*names, self.id}

    def value_of_others(self, row: Mapping[str, Any]) -> str | None:
        """What a row has that no one asked for, such as `Github`; None for one that is wanted.

        Raises:
            RowError: it does not say.
        """
        for path, wanted in self.only.items():
            value = _selected(row, path)
            if value not in wanted:
                return value
        return None


def _selected(row: Mapping[str, Any], path: str) -> str:
    """What a row has in a field, or in one of its objects."""
    value: Any = row
    for name in (path,) if path in row else path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            there = ", ".join(map(str, value)) if isinstance(value, Mapping) else "no object"
            told = f"it has {there or 'nothing'}"
            raise RowError(f"there is no `{path}` to select it by ({told}): correct --only")
        value = cast(Any, value[name])
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str | int):
        raise RowError(f"`{path}` is a {type(value).__name__}, by which --only cannot select")
    return str(value)


def pieces_of_row(
    row: Mapping[str, Any], *, fields: Fields, fetch: Callable[[str], bytes]
) -> tuple[Segment, ...]:
    """The document that a row is.

    Args:
        row: of a table.
        fields: names of columns.
        fetch: reads a file that a row names.

    Raises:
        RowError: it is none.
    """
    segments = row.get(SEGMENTS_FIELD)
    if segments is not None:
        if not isinstance(segments, list):
            raise RowError(f"`{SEGMENTS_FIELD}` is no list")
        return tuple(
            _segment(segment, number, fetch=fetch) for number, segment in enumerate(segments)
        )
    kinds = [name for name in KINDS if row.get(name) is not None]
    text = row.get(fields.text)
    if text is None and kinds:
        text = row.get(CAPTION_FIELD)
    if text is None:
        others = f" or `{CAPTION_FIELD}`" if kinds else ""
        there = ", ".join(name for name, value in row.items() if value is not None) or "nothing"
        told = "it is null" if fields.text in row else f"it has {there}; --text-field names another"
        raise RowError(f"there is no `{fields.text}`{others} ({told})")
    payloads = [media_piece(KINDS[name], row[name], fetch=fetch) for name in kinds]
    return (*payloads, TextSegment(text=require_text(text, fields.text)))


def media_piece(kind: Kind, value: Any, *, fetch: Callable[[str], bytes]) -> MediaSegment:
    """A span from bytes, from the path of a file, or from a dict with either.

    Raises:
        RowError: it is none of these, or not what it claims to be.
    """
    try:
        data = payload(value, fetch=fetch)
    except RowError:
        raise
    except ValueError as error:
        raise RowError(f"`{MEDIA[kind]}` {error}") from error
    return MediaSegment(kind=kind, data=data, size=media.measured(kind, data))


def require_text(value: Any, name: str) -> str:
    """A field that must be text which can be stored.

    Raises:
        RowError: it is not.
    """
    if not isinstance(value, str):
        raise RowError(f"`{name}` is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"`{name}` holds half a character ({error.reason})") from error
    return value


def _segment(segment: Any, number: int, *, fetch: Callable[[str], bytes]) -> Segment:
    name = f"{SEGMENTS_FIELD}[{number}]"
    if not isinstance(segment, dict):
        raise RowError(f"{name} is no object")
    # Parquet gives every row all the fields of the column's type.
    given = {key: value for key, value in segment.items() if value is not None}
    unknown = sorted(set(given) - _SEGMENT_KEYS)
    if unknown:
        raise RowError(f"{name} has `{unknown[0]}`; known are {', '.join(sorted(_SEGMENT_KEYS))}")
    contents = [key for key in ("text", *KINDS) if key in given]
    if len(contents) != 1:
        raise RowError(f"{name} must have one of text, {', '.join(KINDS)}")
    [content] = contents
    is_text = content == "text"
    is_span = given.get("span", not is_text)
    is_scored = given.get("scored", not is_span)
    ends = given.get("ends_paragraph", not is_span)
    for key, value in (("span", is_span), ("scored", is_scored), ("ends_paragraph", ends)):
        if not isinstance(value, bool):
            raise RowError(f"{name}: `{key}` is neither true nor false")
    if is_text:
        text = require_text(given["text"], f"{name}.text")
        return TextSegment(text=text, is_span=is_span, is_scored=is_scored, ends_paragraph=ends)
    if is_scored or not is_span or ends:
        raise RowError(f"{name}: {content} is always a span, never scored, and ends no paragraph")
    return media_piece(KINDS[content], given[content], fetch=fetch)
