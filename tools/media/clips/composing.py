"""Videos of frames: one animation, or two of them one behind the other."""

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import av
from PIL import Image

from tools.media.clips.animations import Animation

ENCODED_BY: Final = f"PyAV {av.__version__}, VP9"
_UNIT: Final = Fraction(1, 1000)


def video(frames: Sequence[Image.Image], milliseconds: Sequence[int]) -> bytes:
    """A WebM of frames that are seen so long each; the same bytes for the same frames."""
    content = io.BytesIO()
    options = {"crf": "24", "b": "0", "cpu-used": "8", "deadline": "realtime", "row-mt": "0"}
    # Else its header tells a number that is drawn.
    with av.open(content, "w", format="webm", container_options={"fflags": "+bitexact"}) as file:
        # The last frame lasts as long as one of this rate.
        rate = Fraction(1000, max(1, milliseconds[-1]))
        stream: Any = file.add_stream("libvpx-vp9", rate=rate, options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _UNIT
        stream.codec_context.thread_count = 1
        at = 0
        for picture, length in zip(frames, milliseconds, strict=True):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = at, _UNIT
            file.mux(stream.encode(frame))
            at += max(1, length)
        file.mux(stream.encode())
    return content.getvalue()


def whole(animation: Animation) -> bytes:
    """All of one."""
    return video(animation.frames, animation.milliseconds)


def one_behind_the_other(first: Animation, second: Animation, *, frames: int) -> bytes:
    """The beginnings of two, each half of the time."""
    shown = [*_spread(first, frames), *_spread(second, frames)]
    return video(shown, [_LENGTH] * len(shown))


def one_frame(animation: Animation, *, frames: int, number: int) -> bytes:
    """A still of what `one_behind_the_other` shows of one of its two."""
    return video([_spread(animation, frames)[number]], [_LENGTH])


_LENGTH: Final = 80


def _spread(animation: Animation, count: int) -> list[Image.Image]:
    whole = animation.frames
    return [whole[(2 * number + 1) * len(whole) // (2 * count)] for number in range(count)]
