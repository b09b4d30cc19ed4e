"""Pictures, sound and video: what files are taken for which, and whether they are what they say."""

import io
import warnings
from collections.abc import Mapping
from typing import Final

from PIL import Image

from train.data.document import MEDIA, Kind

SUFFIXES: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"), Kind.IMAGE
    ),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg", ".opus"), Kind.AUDIO),
    **dict.fromkeys((".mp4", ".webm", ".mkv"), Kind.VIDEO),
}
"""What a file is by its name."""

KINDS: Final[Mapping[str, Kind]] = {name: kind for kind, name in MEDIA.items()}
"""Kinds by the names that columns and segments have."""


class RowError(ValueError):
    """A record or a file cannot be made a document; the message is the end of a sentence."""


def check(kind: Kind, data: bytes) -> None:
    """Refuse a payload that is not of its kind.

    Raises:
        RowError: it is not.
    """
    if not data:
        raise RowError(f"the {MEDIA[kind]} is empty")
    if kind == Kind.IMAGE:
        _check_image(data)
    elif _format(kind, data) is None:
        known = {Kind.AUDIO: "wav, flac, mp3 or ogg", Kind.VIDEO: "mp4, webm or mkv"}[kind]
        raise RowError(f"the {MEDIA[kind]} is not {known}: it begins with {data[:8]!r}")


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
    if kind == Kind.VIDEO:
        if data[4:8] == b"ftyp":
            return "MP4"
        return "WebM" if data[:4] == b"\x1a\x45\xdf\xa3" else None
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "WAV"
    starts = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3"}
    for start, name in starts.items():
        if data.startswith(start):
            return name
    # A frame of MPEG audio: eleven bits set, then a version and a layer that exist.
    is_frame = len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    return "MP3" if is_frame and data[1] & 0x18 != 0x08 and data[1] & 0x06 else None


def _check_image(data: bytes) -> None:
    try:
        with warnings.catch_warnings():
            # Pictures of more pixels than any encoder reads: an attack, or a mistake.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.verify()
    except Exception as error:  # as many kinds as there are formats
        reason = str(error).replace(repr(error), "") or type(error).__name__
        if "cannot identify image file" in reason:
            reason = f"no format that is known begins with {data[:8]!r}"
        raise RowError(f"the image cannot be read ({reason})") from error
