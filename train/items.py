"""Items that a prompt shows, such as a picture: what is taken for one, and how large it may be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from train.data.document import MEDIA, Kind
from train.data.segments import MediaSegment
from train.data.spans import clip, picture, sound
from train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How large an item may be; what encoders read may be less.

    Attributes:
        num_bytes: of its file.
        pixels: of a picture, or of a video's frames.
        video_pixels: of all frames of a video.
        seconds: of a sound or a video; None: as long as readers take it.
    """

    num_bytes: int = 1 << 30
    pixels: int = picture.MOST_PIXELS
    video_pixels: int = clip.MOST_VIDEO_PIXELS
    seconds: float | None = None


def _picture(data: bytes, bounds: Bounds) -> tuple[int, ...]:
    height, width = picture.read_size(data)
    if height * width > bounds.pixels:
        raise ValueError(
            f"has {height}x{width} pixels, more than {bounds.pixels:,}: make it smaller"
        )
    return height, width


def _sound(data: bytes, bounds: Bounds) -> tuple[int, ...]:
    return sound.measured(data, most_seconds=bounds.seconds)


def _video(data: bytes, bounds: Bounds) -> tuple[int, ...]:
    return clip.measured(
        data,
        most_pixels=bounds.pixels,
        most_video_pixels=bounds.video_pixels,
        most_seconds=bounds.seconds,
    )


_MEASURES: Final[Mapping[Kind, Callable[[bytes, Bounds], tuple[int, ...]]]] = {
    Kind.IMAGE: _picture,
    Kind.AUDIO: _sound,
    Kind.VIDEO: _video,
}
"""What tells the size of an item, by modality, and refuses (ValueError) one beyond its bounds."""


def item_of(kind: Kind, data: bytes, *, name: str, bounds: Bounds) -> MediaSegment:
    """An item of a prompt.

    Args:
        kind: its modality.
        data: its file.
        name: what messages call it.
        bounds: of its size.

    Raises:
        UserError: it is larger, cannot be read or is of another modality; the message names it.
    """
    if len(data) > bounds.num_bytes:
        raise UserError(
            f"{name} has {len(data):,} bytes, more than {bounds.num_bytes:,}: make it smaller"
        )
    try:
        size = _MEASURES[kind](data, bounds)
    except ValueError as error:
        other = _other(kind, data, bounds) if data else None
        if other is not None:
            raise UserError(f"{name} is no {MEDIA[kind]} but {MEDIA[other]}: name it so") from error
        raise UserError(f"{name} {error}") from error
    return MediaSegment(kind=kind, data=data, size=size, name=name)


def _other(kind: Kind, data: bytes, bounds: Bounds) -> Kind | None:
    """The modality that a file is of, where it is not of the one that was said."""
    for other, measure in _MEASURES.items():
        if other == kind:
            continue
        try:
            measure(data, bounds)
        except ValueError:
            continue
        return other
    return None
