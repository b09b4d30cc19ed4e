"""Pictures: from the bytes of a file to the patches that the image encoder reads."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from model.encoders.grid import Grid
from model.encoders.image import ImageEncoderConfig, ImageSpans
from model.encoders.patches import PatchEncoderKind
from train.data.spans.augment import AugmentConfig, changed, cut_out
from train.data.spans.media import Laid
from train.data.spans.places import FlatSpans, Ints, padded, runs
from train.data.spans.protocol import SpanCapacity

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may take bytes for; other formats start programs or are no pictures."""
MOST_PIXELS: Final = 89_478_485
"""Pillow's own bound: a quarter of a GiB of RGB. More is an attack, or a mistake."""
_MOST_FITTED: Final = 2**24
"""Pixels of a picture that is fitted whole before its middle is cut out; of a longer one the middle
alone is computed."""
_RESAMPLING: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture as patches.

    Attributes:
        patches: [n, 3 P P] uint8, row after row of the grid.
        grid: rows and columns of patches.
    """

    patches: npt.NDArray[np.uint8]
    grid: Grid


def read_size(data: bytes) -> tuple[int, int]:
    """Height and width in pixels as a picture is seen, that is behind its EXIF orientation.

    Raises:
        ValueError: it cannot be read; the message is the end of a sentence.
    """
    with _opened(data) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _TURNED else (height, width)


def measured(data: bytes) -> tuple[int, int]:
    """Height and width of a picture that is whole: it is read to its end, and checked.

    Raises:
        ValueError: it cannot be read; the message is the end of a sentence.
    """
    size = read_size(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.verify()  # of some formats, such as PNG, the checksums
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.draft("L", (1, 1))  # JPEG: an eighth of each side tells as much
            _load(image)
    except Exception as error:  # as many kinds as there are formats
        raise ValueError(f"cannot be read ({_reason(error, data)})") from error
    return size


def read_picture(
    data: bytes,
    encoder: ImageEncoderConfig,
    *,
    size: Sequence[int] | None = None,
    augment: AugmentConfig | None = None,
    random: np.random.Generator | None = None,
) -> Picture:
    """Patches of a picture, the same for the same bytes everywhere.

    Of an animation the first frame is read. EXIF's orientation is obeyed, and taken for upright
    where it cannot be read. What is transparent lies on white; 16 bits become 8 by their upper
    half; CMYK and palettes become RGB; colour profiles are left aside.

    Args:
        data: a file.
        encoder: what is to read it.
        size: height and width that were recorded when the corpus was built, if it was.
        augment: how it is changed, with what `random` draws; it has as many patches then.
        random: what that is drawn with.

    Raises:
        ValueError: it cannot be read, or is not of this size; the message is the end of a sentence.
    """
    with _opened(data) as image:
        try:
            upright = _upright(image)
        except Exception as error:  # as many kinds as there are formats
            raise ValueError(f"cannot be read ({_reason(error, data)})") from error
    height, width = upright.height, upright.width
    if size is not None and tuple(size) != (height, width):
        raise ValueError(
            f"has {height}x{width} pixels and had {'x'.join(map(str, size))} when the corpus was "
            "built"
        )
    rows, columns = grid = encoder.grid((height, width))
    P = encoder.patch_pixels
    height, width = encoder.size or (rows * P, columns * P)
    part = None if augment is None or random is None else cut_out(upright, augment, random)
    if part is None:
        fitted = resized(upright, (height, width), encoder)
    else:
        fitted = part.resize((width, height), _RESAMPLING[encoder.resample])
    if augment is not None and random is not None:
        fitted = changed(fitted, augment, random)
    pixels = np.asarray(fitted)[: rows * P, : columns * P].reshape(rows, P, columns, P, 3)
    patches = pixels.transpose(0, 2, 4, 1, 3).reshape(rows * columns, 3 * P * P)
    return Picture(patches=patches, grid=grid)


def vectors_of(picture: Picture, encoder: ImageEncoderConfig) -> int:
    """How many vectors the encoder gives of a picture."""
    return encoder.class_rows + len(picture.patches) - encoder.dropped_rows


def black_picture(grid: Grid, encoder: ImageEncoderConfig) -> Picture:
    """One that shows nothing."""
    shape = (grid[0] * grid[1], 3 * encoder.patch_pixels**2)
    return Picture(patches=np.zeros(shape, dtype=np.uint8), grid=grid)


def pack_pictures(
    pictures: Sequence[Picture],
    spans: FlatSpans,
    *,
    encoder: ImageEncoderConfig,
    capacity: SpanCapacity,
    sequences: int,
    sequence_tokens: int,
    tokens: Ints | None = None,
) -> ImageSpans:
    """Pack the pictures of B sequences row after row, and the text that is read with them.

    Args:
        pictures: one for each span.
        spans: where their vectors go, as many as each has; and those of text behind it.
        encoder: what is to read them.
        capacity: room in one sequence; arrays have B times as much.
        sequences: B.
        sequence_tokens: S.
        tokens: [B, S], out of which text is read behind pictures; needed where there is any.
    """
    B, first = sequences, encoder.class_rows
    laid = Laid.of(
        pictures,
        spans,
        vectors=lambda picture: vectors_of(picture, encoder),
        padding=lambda: replace(black_picture((1, 1), encoder), grid=encoder.fixed_grid or (1, 1)),
        encoder=encoder,
        capacity=capacity,
        sequences=B,
        sequence_tokens=sequence_tokens,
    )
    pictures = laid.items
    counts = np.array([first + len(picture.patches) for picture in pictures])
    prefixes = laid.prefixes
    longest, rows = int((counts + prefixes).max()), int(counts.sum())
    room_rows = max(laid.room + B * capacity.spans * encoder.dropped_rows, rows)
    places = np.full((room_rows, 2), -1, dtype=np.int64)
    grids = np.ones((room_rows, 2), dtype=np.int64)
    patches = np.zeros((room_rows, pictures[0].patches.shape[1]), dtype=np.uint8)
    inside = runs(np.zeros_like(counts), counts)
    starts = counts.cumsum() - counts
    for start, count, picture in zip(starts, counts, pictures, strict=True):
        here = slice(start + first, start + count)
        patches[here] = picture.patches
        number = np.arange(len(picture.patches))
        places[here] = np.stack(divmod(number, picture.grid[1]), axis=1)
        grids[start : start + count] = picture.grid
    numbers = np.arange(len(counts))
    cells = np.repeat(numbers * longest, counts) + inside
    vectors = np.flatnonzero(inside >= encoder.dropped_rows)
    text: dict[str, Any] = {}
    if encoder.text is not None:
        behind = runs(np.zeros_like(prefixes), prefixes)
        cells = np.append(cells, np.repeat(numbers * longest + counts, prefixes) + behind)
        # Rows of text lie behind those of all pictures, its vectors behind those of its own.
        owners = np.append(np.repeat(numbers, laid.lengths), np.repeat(numbers, prefixes))
        vectors = np.append(vectors, rows + np.arange(len(behind)))
        vectors = vectors[np.argsort(owners, kind="stable")]
        room = B * capacity.spans * capacity.prefix_tokens
        text = _text_behind(spans, laid, tokens, behind, room=room)
        rows += len(behind)
        room_rows = max(room_rows, rows)
    return ImageSpans(
        patches=torch.from_numpy(patches),
        places=torch.from_numpy(places),
        grids=torch.from_numpy(grids),
        cells=padded(cells, room_rows),
        vectors=padded(vectors, laid.room),
        num_rows=rows,
        **laid.packed,
        **text,
        num_spans=len(counts),
        longest_rows=longest,
    )


def _text_behind(
    spans: FlatSpans, laid: Laid[Picture], tokens: Ints | None, behind: Ints, *, room: int
) -> dict[str, Any]:
    """What an encoder reads of text behind pictures.

    Args:
        spans: of pictures and their text.
        laid: the pictures.
        tokens: [B, S].
        behind: place of each token behind its picture.
        room: tokens that there is room for.
    """
    found = np.zeros(len(behind), dtype=np.int64)
    if len(behind):
        assert tokens is not None, "what reads text is given it"
        firsts = spans.first_slots(tokens.shape[1]) + spans.lengths - laid.prefixes
        found = tokens.reshape(-1)[np.repeat(firsts, laid.prefixes) + behind]
    room = max(room, len(behind), 1)
    return {
        "tokens": padded(found, room),
        "positions": padded(behind, room),
        "num_tokens": len(behind),
    }


_TURNED: Final = (5, 6, 7, 8)
"""Orientations of EXIF that exchange height and width."""


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise ValueError("is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # as many kinds as there are formats
        raise ValueError(f"cannot be read ({_reason(error, data)})") from error
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"has {image.height}x{image.width} pixels, more than {MOST_PIXELS:,}: make it smaller, "
            "or leave it out"
        )
    return image


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MOST_PIXELS:,} pixels: make it smaller, or leave it out"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"no format that is known begins with {data[:8]!r}"
    return str(error).replace(repr(error), "") or type(error).__name__


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns what it reads of these, and tells the size of that
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged block, of as many kinds as there are formats
        return 1


_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _load(image: Image.Image) -> None:
    image.load()
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and which of them is white is not said")


def _upright(image: Image.Image) -> Image.Image:
    """Whole, in RGB, as it is seen."""
    turn = _TURNS.get(_orientation(image))
    _load(image)
    if image.mode.startswith("I;16"):
        upper = np.asarray(image).astype(np.uint16) >> 8
        image = Image.fromarray(upper.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def resized(image: Image.Image, size: tuple[int, int], encoder: PatchEncoderKind) -> Image.Image:
    """A picture at a height and width, as an encoder wants it."""
    height, width = size
    fitted = size if encoder.resized is None else (encoder.resized[0], encoder.resized[1])
    if encoder.fit == "crop":
        fitted = _covering(fitted, (image.height, image.width))
    top, left = (fitted[0] - height) // 2, (fitted[1] - width) // 2
    how = _RESAMPLING[encoder.resample]
    if fitted[0] * fitted[1] <= _MOST_FITTED:
        # Whole, as processors do: Pillow rounds otherwise where it computes a part.
        whole = image.resize((fitted[1], fitted[0]), how)
        return whole.crop((left, top, left + width, top + height))
    down, right = image.height / fitted[0], image.width / fitted[1]
    box = (left * right, top * down, (left + width) * right, (top + height) * down)
    return image.resize((width, height), how, box=box)


def _covering(size: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int]:
    """The smallest height and width of a picture's aspect that cover a size; as in CLIP."""
    (height, width), (whole_height, whole_width) = size, whole
    if height * whole_width >= width * whole_height:
        return height, height * whole_width // whole_height
    return width * whole_height // whole_width, width
