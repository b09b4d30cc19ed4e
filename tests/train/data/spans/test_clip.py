"""From files to frames: every kind of file that there is, and those that cannot be read."""

import contextlib
import io
import itertools
import struct
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.clips import exact, noise, saved, with_sound
from tests.model.encoders.test_video import tiny_config
from tools.corpus.media import RowError
from tools.corpus.media import measured as measured_in_a_build
from train.data.document import Kind
from train.data.spans import clip
from train.data.spans.clip import MOST_FRAMES, measured, read_frames
from train.data.spans.tubes import read_clip

FRAMES = noise(7, 24, 40)
KINDS: dict[str, dict[str, Any]] = {
    "h264": {"crf": "1"},
    "h264, two at a time": {"crf": "1", "bf": "2"},
    "mpeg4": {"codec": "mpeg4", "qmin": "1", "qmax": "1"},
    "vp9": {"format": "webm", "crf": "4"},
    "vp8": {"format": "webm", "codec": "libvpx", "crf": "4"},
    "av1": {"format": "webm", "codec": "libsvtav1", "crf": "4"},
    "h264 in mkv": {"format": "matroska", "codec": "libx264", "crf": "1"},
    "full colour": {"crf": "1", "pixels": "yuv444p"},
}


def numbers(data: bytes, count: int, frames: Any = FRAMES) -> list[int]:
    """Which of the frames come back, of a file that keeps them as they are."""
    found = [np.asarray(frame) for frame in read_frames(data, count=count)]
    return [
        next(n for n, frame in enumerate(frames) if np.array_equal(frame, each)) for each in found
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_the_file(kind: str) -> None:
    """All of them, in order, and nearly as they were."""
    # Larger than what codecs work on at a time.
    frames = noise(6, 96, 64)
    data = saved([*np.stack(frames).repeat(2, axis=1)[:, :128]], **KINDS[kind])
    assert measured(data) == (6, 128, 64, 240)
    found = read_frames(data, count=6, size=(6, 128, 64, 240))
    for frame, wanted in zip(found, np.stack(frames).repeat(2, axis=1)[:, :128], strict=True):
        far = [
            np.abs(np.asarray(frame).astype(int) - other.repeat(2, axis=0)[:128]).mean()
            for other in frames
        ]
        assert np.asarray(frame).shape == wanted.shape
        assert np.abs(np.asarray(frame).astype(int) - wanted).mean() == min(far) < 40


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (7, [0, 1, 2, 3, 4, 5, 6]),
        (1, [3]),
        (2, [1, 5]),
        (3, [1, 3, 5]),
        (14, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]),
    ],
)
def test_frames_are_evenly_chosen(count: int, wanted: list[int]) -> None:
    assert numbers(exact(FRAMES), count) == wanted


def test_of_frames_that_are_seen_longer_more_is_read() -> None:
    """By the time at which they are seen, not by their number."""
    data = exact(FRAMES, at=[0, 10, 20, 500, 510, 900, 1000])
    assert measured(data) == (7, 24, 40, 1040)
    assert numbers(data, 4) == [2, 2, 4, 5]  # 130, 390, 650 and 910 ms
    # The beginning of the video is that of its first frame.
    later = exact(FRAMES, at=[5000 + each for each in (0, 10, 20, 500, 510, 900, 1000)])
    assert measured(later) == (7, 24, 40, 1040)
    assert numbers(later, 4) == [2, 2, 4, 5]


def test_any_way_of_choosing_agrees_with_a_loop() -> None:
    random = np.random.default_rng(0)
    for _ in range(12):
        at = np.cumsum(random.integers(1, 300, 7)).tolist()
        count = int(random.integers(1, 12))
        begin, end = at[0], at[-1] + 40
        wanted = []
        for part in range(count):
            middle = begin + (part + 0.5) * (end - begin) / count
            wanted.append(max(n for n, start in enumerate(at) if start <= middle + 1e-9))
        assert numbers(exact(FRAMES, at=at), count) == wanted, (at, count)


def test_a_still_is_a_video_of_one_frame() -> None:
    for data in (exact(FRAMES[:1]), saved(FRAMES[:1]), saved(FRAMES[:1], format="webm")):
        assert measured(data) == (1, 24, 40, 40)
    assert numbers(exact(FRAMES[:1]), 5) == [0] * 5


def test_titles_may_be_in_any_letters() -> None:
    data = saved(FRAMES).replace(b"Lavf", b"caf\xe9")
    assert measured(data) == (7, 24, 40, 280)


def test_sound_is_left_aside() -> None:
    data = with_sound(noise(5, 16, 16))
    assert measured(data)[:3] == (5, 16, 16)


@pytest.mark.parametrize(("turn", "size"), [(0, (24, 40)), (1, (40, 24)), (2, (24, 40))])
def test_a_turn_that_the_file_asks_for_is_made(turn: int, size: tuple[int, int]) -> None:
    """As telephones save what they film upright: a matrix in the header of the track."""
    data = bytearray(saved(noise(2, 24, 40), crf="1"))
    upright = np.asarray(next(read_frames(bytes(data), count=1)))
    cosine, sine = ((1, 0), (0, 1), (-1, 0))[turn]
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0]
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">8iI", *(value << 16 for value in matrix), 1 << 30)
    assert measured(bytes(data))[1:3] == size
    found = np.asarray(next(read_frames(bytes(data), count=1)))
    # The matrix turns clockwise.
    np.testing.assert_array_equal(found, np.rot90(upright, -turn))


def test_the_same_bytes_give_the_same_pixels() -> None:
    """Colours are computed with whole numbers alone, whatever the processor can do.

    Of one colour each, so that the way back from halved colours says nothing.
    """
    colours = [(255, 0, 0), (0, 255, 0), (12, 34, 56), (255, 255, 255), (0, 0, 0)]
    frames = [np.full((16, 16, 3), colour, np.uint8) for colour in colours]
    found = [np.asarray(frame)[8, 8].tolist() for frame in read_frames(saved(frames), count=5)]
    assert found == MEASURED
    assert np.abs(np.array(found) - np.array(colours)).max() <= 3


MEASURED = [[254, 0, 0], [0, 255, 1], [13, 34, 56], [255, 255, 255], [0, 0, 0]]
"""Of PyAV 18.1.0."""


def cut(share: float, **options: Any) -> bytes:
    data = saved(noise(20, 64, 64), **options)
    return data[: int(len(data) * share)]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("format", ["mp4", "webm", "matroska"])
def test_what_is_cut_off_is_refused(format: str, share: float) -> None:
    for function in (measured, lambda data: list(read_frames(data, count=2))):
        with pytest.raises(ValueError, match=r"cut off|cannot be read"):
            function(cut(share, format=format))


def with_cover() -> bytes:
    """A sound with a picture of its cover, which is a stream of video by name."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        video: Any = container.add_stream("mjpeg", rate=1)
        video.height, video.width, video.pix_fmt = 16, 16, "yuvj420p"
        video.disposition = Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(noise(1, 16, 16)[0], format="rgb24")
        container.mux(video.encode(frame.reformat(format="yuvj420p")))
        container.mux(video.encode())
    return content.getvalue()


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "no format that is known begins with b'.x89P"),
    "a word": (b"abc", "no format that is known begins with b'abc'"),
    "a list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", "no format that is known"),
    "a name alone": (b"\0\0\0\x18ftypmp42" + bytes(64), "cannot be read"),
    "a header alone": (b"\x1a\x45\xdf\xa3" + bytes(64), "cut off, or damaged"),
    "sound": (with_sound(), "has sound alone, and no video stream"),
    "sound in webm": (with_sound(format="webm"), "has sound alone, and no video stream"),
    "a cover": (with_cover(), "has no video stream"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_told(name: str) -> None:
    data, told = BAD[name]
    with pytest.raises(ValueError, match=told):
        measured(data)
    with pytest.raises(ValueError, match=told):
        list(read_frames(data, count=4))
    with pytest.raises(RowError, match=f"the video .*{told}"):
        measured_in_a_build(Kind.VIDEO, data)


def test_bytes_that_are_changed_do_not_end_the_process() -> None:
    """They are read, or an error says that they cannot be."""
    random = np.random.default_rng(0)
    for format, _ in itertools.product(("mp4", "webm"), range(40)):
        data = bytearray(saved(FRAMES, format=format))
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(256)
        with contextlib.suppress(ValueError):
            assert len(list(read_frames(bytes(data), count=3))) == 3


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_FRAMES > 3600 * 24
    monkeypatch.setattr("train.data.spans.clip.MOST_FRAMES", 6)
    with pytest.raises(ValueError, match="has more than 6 frames: cut it, or leave it out"):
        measured(exact(FRAMES))
    with pytest.raises(ValueError, match="has frames of 24x40 pixels, more than 900: make it"):
        measured(exact(FRAMES), most_pixels=900)
    with pytest.raises(ValueError, match=r"is longer than 0\.2 seconds"):
        measured(exact(FRAMES[:6] * 2), most_seconds=0.2)
    assert measured(exact(FRAMES[:6]), most_seconds=0.25)[0] == 6


def test_pixels_of_all_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small file that would cost hours no more than is allowed is decoded."""
    decoded: list[int] = []
    frames = clip._frames

    def counted(data: bytes, **bounds: int) -> Any:
        for number, frame in enumerate(frames(data, **bounds)):
            decoded.append(number)
            yield frame

    monkeypatch.setattr(clip, "_frames", counted)
    assert measured(exact(FRAMES), most_video_pixels=7 * 24 * 40)[0] == 7
    decoded.clear()
    told = r"has more than 3,000 pixels in all frames of 24x40: cut it, make it smaller, or leave"
    with pytest.raises(ValueError, match=told):
        measured(exact(FRAMES), most_video_pixels=3000)
    assert len(decoded) == 4
    decoded.clear()
    with pytest.raises(ValueError, match="has frames of 24x40 pixels, more than 900: make it"):
        measured(exact(FRAMES), most_pixels=900)
    assert not decoded


def test_frames_come_one_by_one() -> None:
    """What is made of one need not wait for the others; those that are the same are one object."""
    coming = read_frames(exact(FRAMES[:2]), count=4)
    found = [next(coming)]
    assert np.array_equal(np.asarray(found[0]), FRAMES[0])
    found += coming
    assert [each is found[0] for each in found] == [True, True, False, False]
    assert found[2] is found[3]


def test_what_was_recorded_must_be_there() -> None:
    data = exact(FRAMES)
    for size in ((8, 24, 40, 280), (7, 40, 24, 280), (7, 24, 40, 300)):
        with pytest.raises(
            ValueError, match=r"has 7 frames of 24x40 in 280 ms and had .* when the corpus was"
        ):
            list(read_frames(data, count=2, size=size))


def test_tubes_are_frames_behind_each_other() -> None:
    """Of a file that keeps pixels: each tube, by a loop over its frames, colours and pixels."""
    config = tiny_config(size=[8, 12])
    frames = noise(4, 8, 12)
    clip = read_clip(exact(frames), config)
    assert clip.grid == (2, 3)
    number = 0
    for time in range(2):
        for row in range(2):
            for column in range(3):
                tube = [
                    frames[2 * time + after][4 * row + y, 4 * column + x, colour]
                    for colour in range(3)
                    for after in range(2)
                    for y in range(4)
                    for x in range(4)
                ]
                assert clip.patches[number].tolist() == tube
                number += 1
    assert number == len(clip.patches)


def test_frames_keep_their_aspect_or_get_one_size() -> None:
    data = exact(noise(3, 16, 48))
    assert read_clip(data, tiny_config(max_patches=6)).grid == (1, 4)
    assert read_clip(data, tiny_config(size=[8, 8])).grid == (2, 2)
