"""From files to patches: every kind of file that there is, and those that cannot be read."""

import hashlib
import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.model.encoders.test_image import tiny_config
from train.data.spans.picture import MOST_PIXELS, Picture, measured, read_picture, read_size

PICTURES = Path(__file__).parents[3] / "fixtures" / "pictures"
CONFIG = tiny_config(max_patches=64)
"""Patches of 4x4."""
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(picture: Picture, P: int = 4) -> np.ndarray:
    """[height, width, 3] again."""
    rows, columns = picture.grid
    parts = picture.patches.reshape(rows, columns, 3, P, P)
    return parts.transpose(0, 3, 1, 4, 2).reshape(rows * P, columns * P, 3)


def noise(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(256, size=(height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def test_patches_are_the_pixels() -> None:
    image = noise(12, 20)
    picture = read_picture(saved(image), CONFIG, size=(12, 20))
    assert picture.grid == (3, 5)
    assert picture.patches.shape == (15, 48)
    assert picture.patches.dtype == np.uint8
    assert (pixels(picture) == np.asarray(image)).all()
    first_green = np.asarray(image)[:4, 4:8, 1]
    assert (picture.patches[1].reshape(3, 4, 4)[1] == first_green).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG"])
def test_formats(format: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image = Image.new("RGB", (8, 8), (200, 40, 120))
    read = pixels(read_picture(saved(image, format, **options.get(format, {})), CONFIG))
    assert abs(read.astype(int) - [200, 40, 120]).max() <= (2 if format == "JPEG" else 0)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_exif(orientation: int, format: str) -> None:
    """A picture that a camera stored turned is seen upright, and its size is that."""
    seen = noise(8, 12)
    turns = [
        *(None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180),
        *(Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90),
        *(Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270),
    ]
    turn = turns[orientation - 1]
    stored = seen if turn is None else seen.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, format, exif=exif)
    assert read_size(data) == measured(data) == (8, 12)
    assert (pixels(read_picture(data, CONFIG, size=(8, 12))) == np.asarray(seen)).all()


def test_damaged_exif_is_none() -> None:
    image = noise(8, 12)
    for exif in (b"Exif\0\0nonsense", b"", b"II*\0\xff\xff\xff\xff"):
        data = saved(image, "WEBP", lossless=True, exif=exif)
        assert read_size(data) == (8, 12)
        assert (pixels(read_picture(data, CONFIG)) == np.asarray(image)).all()


def test_what_is_transparent_lies_on_white() -> None:
    half = Image.new("RGBA", (8, 4), (*RED, 0))
    half.paste((*RED, 255), (4, 0, 8, 4))
    read = pixels(read_picture(saved(half), CONFIG))
    assert (read[:, :4] == WHITE).all()
    assert (read[:, 4:] == RED).all()
    grey = Image.new("LA", (4, 4), (0, 128))
    assert abs(pixels(read_picture(saved(grey), CONFIG)).astype(int) - 127).max() <= 1
    palette = Image.new("P", (8, 4), 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (4, 0, 8, 4))
    for format in ("PNG", "GIF"):
        read = pixels(read_picture(saved(palette, format, transparency=0), CONFIG))
        assert (read[:, :4] == WHITE).all()
        assert (read[:, 4:] == BLUE).all()
    plain = Image.new("RGB", (4, 4), GREEN)
    read = pixels(read_picture(saved(plain, transparency=GREEN), CONFIG))
    assert (read == WHITE).all()


def test_other_kinds_of_pixels() -> None:
    cmyk = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    read = pixels(read_picture(saved(cmyk, "TIFF"), CONFIG))
    assert (read == (0, 255, 255)).all()
    read = pixels(read_picture(saved(cmyk, "JPEG", quality=100), CONFIG))
    assert abs(read.astype(int) - (0, 255, 255)).max() <= 3
    deep = Image.fromarray(np.array([[0x0000, 0x1234], [0x8000, 0xFFFF]], dtype=np.uint16))
    for format in ("PNG", "TIFF"):
        deep_config = tiny_config(max_patches=4, patch_pixels=2)
        read = pixels(read_picture(saved(deep, format), deep_config), 2)
        assert read[..., 0].tolist() == [[0x00, 0x12], [0x80, 0xFF]]
    bits = Image.new("1", (4, 4), 1)
    assert (pixels(read_picture(saved(bits), CONFIG)) == WHITE).all()
    grey = Image.new("L", (4, 4), 77)
    assert (pixels(read_picture(saved(grey), CONFIG)) == 77).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    first, *others = (Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE))
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(first, format, save_all=True, append_images=others, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # pyright: ignore[reportAttributeAccessIssue]  # of these formats
    assert (pixels(read_picture(data, CONFIG)) == RED).all()


def test_one_pixel_high_and_very_wide() -> None:
    data = saved(noise(1, 10_000))
    native = read_picture(data, CONFIG, size=(1, 10_000))
    assert native.grid == (1, 64)
    for fit in ("stretch", "crop"):
        fixed = tiny_config(size=[8, 12], fit=fit)
        assert read_picture(data, fixed).patches.shape == (6, 48)
    # Fitted whole it would be 224 x 2,240,000: its middle alone is computed, the 5,000th pixel.
    image = Image.open(io.BytesIO(data))
    read = pixels(read_picture(data, tiny_config(size=[224, 224], fit="crop")))
    assert (read == read[:1]).all()
    assert (read[0, 0] == image.getpixel((4999, 0))).all()
    assert (read[0, -1] == image.getpixel((5000, 0))).all()


READ: dict[str, dict[str, Any]] = {
    "stretch": {"size": [32, 48]},
    "crop": {"size": [32, 32], "fit": "crop", "resample": "bilinear"},
    "native": {"max_patches": 40},
}
DIGESTS = {
    ("turned.jpg", "stretch"): "ba86a26809949c4b",
    ("turned.jpg", "crop"): "9da8eb0b6b6717da",
    ("turned.jpg", "native"): "53535b3e9d495bf0",
    ("alpha.webp", "stretch"): "084e39a9184076c5",
    ("alpha.webp", "crop"): "8be909d4a96cba73",
    ("alpha.webp", "native"): "ecaa52c831f41030",
}
"""Of the patches that Pillow 13 made of them on an x86 machine."""


@pytest.mark.parametrize(("name", "how"), DIGESTS)
def test_the_same_bytes_are_the_same_patches_everywhere(name: str, how: str) -> None:
    """In every process and thread; where this fails, another Pillow reads other patches."""
    data, config = (PICTURES / name).read_bytes(), tiny_config(**READ[how])

    def digest(_: int) -> str:
        return hashlib.sha256(read_picture(data, config).patches.tobytes()).hexdigest()[:16]

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(digest, range(32))) == {DIGESTS[name, how]}


def bomb(height: int, width: int) -> bytes:
    """A small PNG that says it is large, and is not."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return len(content).to_bytes(4, "big") + name + content + check.to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0]))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


WHOLE = saved(noise(40, 40), "JPEG")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "^is empty$"),
        (b"RIFF1234WAVEfmt ", "^cannot be read .no format that is known begins with b'RIFF1234'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no format that is known"),
        (WHOLE[: len(WHOLE) // 2], r"^cannot be read \(image file is truncated"),
        (WHOLE[:30], "^cannot be read"),
        (saved(noise(20, 20))[:300], "^cannot be read"),
        (saved(noise(20, 20), "WEBP")[:-60], "^cannot be read"),
        (bomb(10_000, 10_000), f"more than {MOST_PIXELS:,}"),
        (bomb(60_000, 60_000), f"more than {MOST_PIXELS:,}"),
        (bomb(100, 100), "^cannot be read"),
        (saved(Image.new("F", (4, 4), 0.5), "TIFF"), "32 bits, and which of them is white"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_picture(data, CONFIG)


def test_a_file_changed_since_the_corpus_was_built() -> None:
    with pytest.raises(ValueError, match="has 8x12 pixels and had 12x8 when the corpus was built"):
        read_picture(saved(noise(8, 12)), CONFIG, size=(12, 8))
