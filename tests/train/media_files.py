"""Media as strangers bring them: files that are read as others are, and files that are refused."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import soundfile
from PIL import Image

from tests import clips, sounds


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """A file, and what becomes of it.

    Attributes:
        case: what is odd about it, behind its modality.
        content: its bytes.
        plain: a file without oddity that gives the same vectors; None for one that is refused.
        told: pattern of what is said of one that is refused.
        is_read: whether a run would read one that is refused: what a build has looked at, the hash
            of its shard keeps as it was.
    """

    case: str
    content: bytes
    plain: bytes | None = None
    told: str = ""
    is_read: bool = False

    @property
    def kind(self) -> str:
        """Its modality."""
        return self.case.partition(":")[0]

    @property
    def good(self) -> bytes:
        """A sound file of its modality."""
        return {"image": _PICTURE, "audio": _SOUND, "video": _CLIP}[self.kind]


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture's file."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


_RANDOM = np.random.default_rng(0)
_NOISE = Image.fromarray(_RANDOM.integers(0, 256, (18, 27, 3), np.uint8))
_PICTURE = png(_NOISE)
_DEEP = _RANDOM.integers(0, 1 << 16, (18, 27), np.uint16)
_WIDE = Image.fromarray(_RANDOM.integers(0, 256, (1, 10_000, 3), np.uint8))
_CLEAR = Image.merge("RGBA", [*_NOISE.split(), Image.new("L", _NOISE.size, 0)])
_INK = Image.new("CMYK", (27, 18), (255, 0, 0, 0))
_TONE = sounds.noise(1500)
_SOUND = sounds.saved(_TONE, 16_000)
_TWO = sounds.noise(1500, channels=2)
_FRAMES = clips.noise(4, 16, 24)
_CLIP = clips.saved(_FRAMES)
_NARROW = sounds.noise(700)


def _bomb(height: int, width: int) -> bytes:
    """A small PNG that says it is large."""
    data = bytearray(png(Image.new("L", (1, 1))))
    at = data.index(b"IHDR") + 4
    data[at : at + 8] = struct.pack(">II", width, height)
    data[at + 13 : at + 17] = struct.pack(">I", zlib.crc32(bytes(data[at - 4 : at + 13])))
    return bytes(data)


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _floats(samples: Any, rate: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format="WAV", subtype="DOUBLE")
    return content.getvalue()


def _read_back(data: bytes) -> Any:
    return soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)[0]


def _grey(values: Any) -> bytes:
    return png(Image.fromarray(values.astype(np.uint8)).convert("RGB"))


_STEREO = sounds.saved(_TWO, 16_000)
_TELEPHONE = sounds.saved(_NARROW, 8000)

FILES: Final[tuple[MediaFile, ...]] = (
    MediaFile(case="image: CMYK", content=png(_INK, "TIFF"), plain=png(_INK.convert("RGB"))),
    MediaFile(
        case="image: 16 bits",
        content=png(Image.fromarray(_DEEP)),
        plain=_grey(_DEEP >> 8),
    ),
    MediaFile(
        case="image: alpha",
        content=png(_CLEAR),
        plain=png(Image.new("RGB", _CLEAR.size, "white")),
    ),
    MediaFile(
        case="image: animated where a still is asked",
        content=png(
            _NOISE,
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", _NOISE.size, "red")],
            lossless=True,
        ),
        plain=_PICTURE,
    ),
    MediaFile(
        case="image: turned by EXIF",
        content=png(_NOISE.transpose(Image.Transpose.ROTATE_90), exif=_turned(6)),
        plain=_PICTURE,
    ),
    MediaFile(
        case="image: 1 x 10,000 pixels",
        content=png(_WIDE, "BMP"),
        plain=png(_WIDE),
    ),
    MediaFile(case="image: wrongly named", content=png(_NOISE, "BMP"), plain=_PICTURE),
    MediaFile(case="image: empty", content=b"", told="is empty"),
    MediaFile(
        case="image: truncated",
        content=png(_NOISE, "JPEG")[:400],
        told="cannot be read",
    ),
    MediaFile(
        case="image: a checksum that is wrong",
        content=_PICTURE[:-20] + b"\0" + _PICTURE[-19:],
        told="cannot be read",
        is_read=True,
    ),
    MediaFile(
        case="image: a decompression bomb",
        content=_bomb(60_000, 60_000),
        told=r"cannot be read .it has more than 89,478,485 pixels",
    ),
    MediaFile(
        case="image: a text", content=b"not a picture at all", told="cannot be read .no format"
    ),
    MediaFile(case="image: a sound", content=_SOUND, told="cannot be read .no format"),
    MediaFile(
        case="audio: stereo",
        content=_STEREO,
        plain=_floats(_read_back(_STEREO).mean(axis=1), 16_000),
    ),
    MediaFile(
        case="audio: 8 kHz",
        content=_TELEPHONE,
        plain=_floats(_read_back(_TELEPHONE), 8000),
    ),
    MediaFile(
        case="audio: silence",
        content=sounds.saved(np.zeros((1500, 1)), 16_000, "FLAC"),
        plain=_floats(np.zeros((1500, 1)), 16_000),
    ),
    MediaFile(
        case="audio: wrongly named",
        content=sounds.saved(_TONE, 16_000, "FLAC"),
        plain=_floats(_read_back(sounds.saved(_TONE, 16_000, "FLAC")), 16_000),
    ),
    MediaFile(case="audio: empty", content=b"", told="is empty"),
    MediaFile(
        case="audio: zero length",
        content=sounds.saved(np.zeros((0, 1)), 8000),
        told="has no samples",
    ),
    MediaFile(case="audio: truncated", content=_SOUND[: len(_SOUND) // 2], told="is cut off"),
    MediaFile(
        case="audio: samples that are no numbers",
        content=_floats(np.array([0.1, float("nan")]), 16_000),
        told="has samples that are no numbers",
    ),
    MediaFile(case="audio: a picture", content=_PICTURE, told="cannot be read .no format"),
    MediaFile(
        case="video: variable frame rate",
        content=clips.exact(_FRAMES, at=[0, 80, 120, 160]),
        plain=clips.exact([_FRAMES[0], *_FRAMES]),
    ),
    MediaFile(
        case="video: one frame",
        content=clips.exact(_FRAMES[:1]),
        plain=clips.exact(4 * _FRAMES[:1]),
    ),
    MediaFile(case="video: empty", content=b"", told="is empty"),
    MediaFile(case="video: truncated", content=_CLIP[: len(_CLIP) // 2], told="is cut off"),
    MediaFile(
        case="video: an audio track alone",
        content=clips.with_sound(),
        told="has sound alone, and no video stream",
    ),
    MediaFile(case="video: no video stream", content=_SOUND, told="cannot be read .no format"),
    MediaFile(case="video: a picture", content=_PICTURE, told="cannot be read .no format"),
)
