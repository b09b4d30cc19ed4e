"""Videos: from the bytes of a file to the frames that a video encoder reads."""

import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
from PIL import Image

from train.data.spans.picture import MOST_PIXELS

MOST_FRAMES: Final = 2**17
"""An hour and a half at 24 a second. More is a mistake, or an attack."""
MOST_VIDEO_PIXELS: Final = 2**36
"""Of all frames: an hour of 1024x768 at 24 a second, which minutes decode. More is an attack, or a
film that is to be made smaller."""

Size = tuple[int, int, int, int]
"""Frames, height and width in pixels, milliseconds."""


@dataclass(frozen=True, kw_only=True)
class _Times:
    """When the frames of a video are seen, in units of its stream.

    Attributes:
        starts: of each frame, rising.
        end: of the last one.
        unit: seconds.
        height: pixels, upright.
        width: pixels, upright.
    """

    starts: list[int]
    end: int
    unit: Fraction
    height: int
    width: int

    @property
    def size(self) -> Size:
        milliseconds = round((self.end - self.starts[0]) * self.unit * 1000)
        return len(self.starts), self.height, self.width, max(1, milliseconds)

    def chosen(self, count: int) -> list[int]:
        """Numbers of the frames seen in the middle of each of `count` equal parts of the time."""
        starts = [2 * count * start for start in self.starts]
        length = self.end - self.starts[0]
        return [
            max(0, bisect_right(starts, starts[0] + (2 * part + 1) * length) - 1)
            for part in range(count)
        ]


def measured(
    data: bytes,
    *,
    most_pixels: int = MOST_PIXELS,
    most_video_pixels: int = MOST_VIDEO_PIXELS,
    most_seconds: float | None = None,
) -> Size:
    """Frames of a video that is whole, its height and width as it is seen, and milliseconds.

    It is decoded to its end: what a header promises is not always there.

    Args:
        data: a file.
        most_pixels: of a frame; of larger ones none is decoded, or one if the header lies.
        most_video_pixels: of all frames together; no more are decoded.
        most_seconds: of a longer one no more is decoded.

    Raises:
        ValueError: it cannot be read, or is larger or longer; the message is the end of a sentence.
    """
    return _times(
        data,
        most_pixels=most_pixels,
        most_video_pixels=most_video_pixels,
        most_seconds=most_seconds,
    ).size


def read_frames(
    data: bytes, *, count: int, size: Sequence[int] | None = None
) -> Iterator[Image.Image]:
    """Frames in RGB, evenly by the time at which they are seen, the same for the same bytes.

    Of as many equal parts of a video's time as frames are wanted, each gives the frame that is seen
    in its middle: some frames come several times where there are too few, and a still is a video of
    one. Only the first video stream is read; sound and subtitles are not. A quarter turn that the
    file asks for is made. Pixels are taken for squares.

    They come one by one, for all of them may be gigabytes. One that comes several times is one
    object, each time behind itself.

    Args:
        data: a file.
        count: frames that are wanted.
        size: what was recorded when the corpus was built, if it was.

    Raises:
        ValueError: it cannot be read, or is not of this size; the message is the end of a sentence.
    """
    times = _times(data)
    if size is not None and tuple(size) != times.size:
        raise ValueError(f"has {_told(times.size)} and had {_told(size)} when the corpus was built")
    chosen = times.chosen(count)
    how_often = Counter(chosen)
    # Again from its beginning: all frames at once may be gigabytes.
    for number, frame in enumerate(_frames(data)):
        if number in how_often:
            yield from [_upright(frame)] * how_often[number]
        if number == chosen[-1]:
            break


def _told(size: Sequence[int]) -> str:
    frames, height, width, milliseconds = size
    return f"{frames} frames of {height}x{width} in {milliseconds} ms"


def _times(
    data: bytes,
    *,
    most_pixels: int = MOST_PIXELS,
    most_video_pixels: int = MOST_VIDEO_PIXELS,
    most_seconds: float | None = None,
) -> _Times:
    starts: list[int] = []
    last, shape = None, (0, 0)
    for frame in _frames(data, most_pixels=most_pixels):
        if frame.pts is None or (starts and frame.pts < starts[-1]):
            raise ValueError("has frames of which it is not told when they are seen")
        if last is None:
            shape = frame.height, frame.width
            _require_few_pixels(frame, most_pixels)
        elif shape != (frame.height, frame.width):
            raise ValueError("has frames of several sizes: save it in one, or leave it out")
        starts.append(frame.pts)
        seconds = (frame.pts - starts[0]) * frame.time_base
        if most_seconds is not None and seconds > most_seconds:
            raise ValueError(f"is longer than {most_seconds:g} seconds")
        last = frame
        if len(starts) > MOST_FRAMES:
            raise ValueError(f"has more than {MOST_FRAMES:,} frames: cut it, or leave it out")
        if len(starts) * frame.height * frame.width > most_video_pixels:
            raise ValueError(
                f"has more than {most_video_pixels:,} pixels in all frames of "
                f"{frame.height}x{frame.width}: cut it, make it smaller, or leave it out"
            )
    if last is None:
        raise ValueError("has no frames, or is cut off")
    before = starts[-1] - starts[-2] if len(starts) > 1 else 1
    height, width = shape[::-1] if _quarters(last) % 2 else shape
    return _Times(
        starts=starts,
        end=starts[-1] + max(1, last.duration or before),
        unit=Fraction(last.time_base),
        height=height,
        width=width,
    )


def _require_few_pixels(shown: Any, most_pixels: int) -> None:
    """Refuse a frame, or what a header tells of frames, that is too large."""
    if shown.height * shown.width > most_pixels:
        raise ValueError(
            f"has frames of {shown.height}x{shown.width} pixels, more than {most_pixels:,}:"
            " make it smaller, or leave it out"
        )


def _frames(data: bytes, *, most_pixels: int = MOST_PIXELS) -> Iterator[Any]:
    """All frames of the first video stream, as PyAV has them."""
    with _opened(data) as (container, stream):
        _require_few_pixels(stream.codec_context, most_pixels)
        for number, frame in enumerate(container.decode(stream), 1):
            if frame.is_corrupt:
                raise ValueError(f"is damaged at frame {number}")
            yield frame


@contextmanager
def _opened(data: bytes) -> Generator[tuple[Any, Any]]:
    import av  # loads FFmpeg, which most runs need not wait for
    from av.error import FFmpegError
    from av.stream import Disposition

    if not data:
        raise ValueError("is empty")
    try:
        # Named, for FFmpeg takes text files for lists of other files. Titles may be in any letters.
        with av.open(
            io.BytesIO(data), format=_format(data), metadata_errors="replace"
        ) as container:
            stream: Any = next(
                (
                    stream
                    for stream in container.streams.video
                    if not stream.disposition & Disposition.attached_pic
                ),
                None,
            )
            if stream is None:
                raise ValueError(
                    "has sound alone, and no video stream"
                    if container.streams.audio
                    else "has no video stream"
                )
            if stream.codec_context is None:
                raise ValueError("cannot be read (FFmpeg has no decoder for its video)")
            # One: the same order everywhere, and readers are threads already.
            stream.codec_context.thread_count = 1
            stream.codec_context.thread_type = "NONE"
            yield container, stream
    except FFmpegError as error:
        why = (error.strerror or type(error).__name__).strip().rstrip(".")
        raise ValueError(f"cannot be read ({why})") from error


def _format(data: bytes) -> str:
    """FFmpeg's name of what a file is, once it is known to be there to its end."""
    if data[4:8] == b"ftyp":
        _require_all_of_mp4(data)
        return "mp4"
    if data[:4] == _EBML:
        _require_all_of_matroska(data)
        return "matroska"
    raise ValueError(f"cannot be read (no format that is known begins with {data[:8]!r})")


def _require_all_of_mp4(data: bytes) -> None:
    """Refuse an MP4 that ends within a box: of what is behind FFmpeg says nothing."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:  # to the end
            return
        if size < 8:
            raise ValueError("cannot be read (a box of it has no size)")
        at += size
    _require_bytes(at, len(data))


_EBML: Final = b"\x1a\x45\xdf\xa3"
_SEGMENT: Final = b"\x18\x53\x80\x67"


def _require_all_of_matroska(data: bytes) -> None:
    """Refuse a WebM or Matroska that ends within its segment, if that tells its size."""
    size, at = _ebml_size(data, len(_EBML))
    at += size or 0
    if data[at : at + len(_SEGMENT)] == _SEGMENT:
        size, at = _ebml_size(data, at + len(_SEGMENT))
        _require_bytes(at + (size or 0), len(data))


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """A size, None where it was not known when it was written; and where it ends."""
    first = data[at] if at < len(data) else 0
    if not first:
        raise ValueError("is cut off, or damaged: a size of it is missing")
    length = 9 - first.bit_length()
    mask = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & mask
    return (None if value == mask else value), at + length


def _require_bytes(wanted: int, there: int) -> None:
    if there < wanted:
        raise ValueError(f"is cut off: {there} of {wanted} bytes are there")


def _quarters(frame: Any) -> int:
    """Quarter turns, against the clock, by which a frame is seen upright; others are not made."""
    return 0 if frame.rotation % 90 else frame.rotation // 90 % 4


def _upright(frame: Any) -> Image.Image:
    """A frame in RGB, by the ways of FFmpeg's scaler that give the same on every machine."""
    from av.video.reformatter import Interpolation

    exactly = Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    fully = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    pixels = frame.to_ndarray(
        format="rgb24", interpolation=Interpolation.BICUBIC | exactly | fully, threads=1
    )
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, _quarters(frame))))
