"""Videos for tests, and rows of corpora with them."""

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from tests import pictures
from tests.corpora import WORDS

UNIT = Fraction(1, 1000)
TURNS = {"rising": 1, "falling": -1}
"""What rows of `turns` say, and which way their videos go."""
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 30), "blue": (30, 30, 240)}
"""Of which rows of `colours` say the first that is seen."""


def noise(count: int, height: int, width: int, *, seed: int = 0) -> list[Any]:
    """Frames of squares of random colours, which codecs keep well."""
    draw = np.random.default_rng(seed)
    shape = (count, -(-height // 8), -(-width // 8), 3)
    squares = draw.integers(0, 256, shape, np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return list(squares[:, :height, :width])


def saved(
    frames: Sequence[Any],
    *,
    at: Sequence[int] | None = None,
    format: str = "mp4",
    codec: str = "",
    pixels: str = "yuv420p",
    **options: str,
) -> bytes:
    """A file of frames [height, width, 3], one each 40 ms or `at` these milliseconds."""
    content = io.BytesIO()
    codec = codec or {"mp4": "libx264", "webm": "libvpx-vp9", "matroska": "ffv1"}[format]
    with av.open(content, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else pixels
        stream.codec_context.time_base = UNIT
        stream.codec_context.thread_count = 1
        for number, pixels_of in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_of), format="rgb24")
            frame.pts, frame.time_base = (40 * number if at is None else at[number]), UNIT
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return content.getvalue()


def exact(frames: Sequence[Any], *, at: Sequence[int] | None = None) -> bytes:
    """A file of which the frames come back as they are."""
    return saved(frames, at=at, format="matroska")


def with_sound(frames: Sequence[Any] = (), *, format: str = "mp4") -> bytes:
    """A file with a beep, and perhaps with frames."""
    content = io.BytesIO()
    with av.open(content, "w", format=format) as container:
        codec = {"mp4": "aac", "webm": "libopus", "matroska": "flac"}[format]
        sound: Any = container.add_stream(codec, rate=48_000)
        sound.layout = "mono"
        video: Any = None
        if frames:
            video = container.add_stream("mpeg4", rate=25)
            video.height, video.width, video.pix_fmt = *frames[0].shape[:2], "yuv420p"
        wave = np.sin(np.arange(9600)[None] / 20).astype(np.float32)
        beep = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        beep.sample_rate = 48_000
        resampled = av.AudioResampler(format=sound.format, layout="mono", rate=48_000)
        for each in resampled.resample(beep):
            container.mux(sound.encode(each))
        container.mux(sound.encode())
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if frames:
            container.mux(video.encode())
    return content.getvalue()


def interleaved(count: int, *, seed: int = 0, most_items: int = 2, with_pictures: bool = True):
    """Rows of text, spans of text, pictures and videos in any order; some of text alone."""
    random = np.random.default_rng(seed)
    words = WORDS.split()

    def text(most: int) -> str:
        return " ".join(random.choice(words, random.integers(1, most)))

    rows: list[Any] = []
    for number in range(count):
        segments: list[dict[str, Any]] = []
        for _ in range(random.integers(0, most_items + 1) if number % 3 else 0):
            height, width = (int(random.choice([16, 24, 40])) for _ in range(2))
            frames = noise(int(random.integers(1, 7)), height, width, seed=number)
            format = str(random.choice(["mp4", "webm", "matroska"]))
            segments.append({"video": saved(frames, format=format)})
            if with_pictures and random.random() < 0.3:
                segments.append({"image": pictures.png(9, 12)})
        segments += [{"text": text(12)} for _ in range(random.integers(1, 3))]
        if random.random() < 0.3:
            segments.append({"text": text(6), "span": True})
        order = random.permutation(len(segments)).tolist()
        rows.append({"segments": [segments[place] for place in order]})
    return rows


def turns(count: int, *, seed: int = 0) -> list[Any]:
    """Videos in which a bright row of squares goes up or down, of many lengths, and which way.

    No frame alone tells it: each is as often in one as in the other.
    """
    random = np.random.default_rng(seed)
    rows: list[Any] = []
    for _ in range(count):
        name = list(TURNS)[random.integers(len(TURNS))]
        begin, length = int(random.integers(4)), int(random.integers(4, 9))
        frames = np.zeros((length, 32, 32, 3), np.uint8)
        for number in range(length):
            place = (begin - TURNS[name] * (number * 4 // length)) % 4
            frames[number, 8 * place : 8 * place + 8] = 255
        rows.append({"video": saved(list(frames)), "text": name})
    return rows


def colours(count: int, *, seed: int = 0, is_still: bool = False) -> list[Any]:
    """Videos of two colours one behind the other, of many lengths, and which comes first.

    No frame alone tells it. Stills are of one of the two.
    """
    random = np.random.default_rng(seed)
    rows: list[Any] = []
    for _ in range(count):
        first, second = random.permutation(list(COLOURS))[:2].tolist()
        length, place = int(random.integers(2, 5)), int(random.integers(2))
        shown = [first] * length + [second] * length
        if is_still:
            shown = [(first, second)[place]]
        frames = [np.full((32, 32, 3), COLOURS[name], np.uint8) for name in shown]
        rows.append({"video": saved(frames), "text": first})
    return rows
