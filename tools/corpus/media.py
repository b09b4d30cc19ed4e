"""Pictures, sound and video: what files are taken for which, and whether they are what they say."""

import io
import re
from collections.abc import Mapping
from typing import Final

from PIL import Image

from train.data.document import MEDIA, Kind
from train.data.spans import clip, picture, sound

SUFFIXES: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"), Kind.IMAGE
    ),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg", ".opus"), Kind.AUDIO),
    **dict.fromkeys((".mp4", ".webm", ".mkv"), Kind.VIDEO),
}
"""What a file is by its name."""

_SIGNS: Final[Mapping[Kind, Mapping[bytes, str]]] = {
    Kind.AUDIO: {
        rb"RIFF....WAVE": "WAV",
        rb"fLaC": "FLAC",
        rb"OggS": "Ogg",
        rb"ID3": "MP3",
        # A frame of MPEG audio: eleven bits set, then a version and a layer that exist.
        rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff].": "MP3",
    },
    Kind.VIDEO: {rb"....ftyp": "MP4", rb"\x1a\x45\xdf\xa3": "WebM"},
}
"""How files begin, and what they are then."""


class RowError(ValueError):
    """A record or a file cannot be made a document; the message is the end of a sentence."""


def measured(kind: Kind, data: bytes) -> tuple[int, ...]:
    """The size of a payload, as `SIZES` has it.

    Raises:
        RowError: it is not of its kind, or is damaged.
    """
    if not data:
        raise RowError(f"the {MEDIA[kind]} is empty")
    try:
        if kind == Kind.IMAGE:
            return picture.measured(data)
        if kind == Kind.AUDIO:
            return sound.measured(data)
        return clip.measured(data)
    except ValueError as error:
        raise RowError(f"the {MEDIA[kind]} {error}") from error


def describe(kind: Kind, data: bytes) -> str:
    """A payload in a few words, such as `image 64x64 PNG, 3.1 kB`."""
    found = _format(kind, data) or "of an unknown format"
    return f"{MEDIA[kind]} {found}, {len(data) / 1000:,.1f} kB"


def _format(kind: Kind, data: bytes) -> str | None:
    """What a payload is by its first bytes, such as `WAV`; None if nothing that we know."""
    if kind == Kind.IMAGE:
        try:
            with Image.open(io.BytesIO(data)) as image:
                return f"{image.width}x{image.height} {image.format}"
        except Exception:  # as many kinds as there are formats
            return None
    signs = _SIGNS[kind].items()
    return next((name for sign, name in signs if re.match(sign, data, re.DOTALL)), None)
