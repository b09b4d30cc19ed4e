"""Pictures as patches, as the image encoder reads them.

What is transparent lies on white, EXIF's orientation is obeyed, 16 bits become 8 by their upper
half, and of an animation the first frame is read.
"""

from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_MOST_FITTED = 2**24
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def grid_of(height: int, width: int, shape: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of patches of a picture of so many pixels."""
    side, most = shape["patch_pixels"], shape["max_patches"]
    if most is None:
        rows, columns = (pixels // side for pixels in shape["size"])
        return rows, columns
    rows = max(1, (2 * height + side) // (2 * side))
    columns = max(1, (2 * width + side) // (2 * side))
    if rows * columns <= most:
        return rows, columns
    rows = min(most, max(1, isqrt(most * height // width)))
    columns = min(most // rows, max(1, isqrt(most * width // height)))
    return rows, columns


def patches_of(image: Any, shape: dict[str, Any]) -> tuple[Tensor, tuple[int, int]]:
    """[rows * columns, 3 * side * side] patches of a picture, row after row, and its grid.

    Raises:
        ValueError: it is no picture of Pillow or numpy, or its pixels have 32 bits.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"images: {type(image).__name__} is no picture: give PIL.Image.open(file), or an "
            "array [height, width, 3] of bytes"
        )
    image = upright(image)
    rows, columns = grid_of(image.height, image.width, shape)
    side = shape["patch_pixels"]
    size = shape["size"] or (rows * side, columns * side)
    pixels = np.asarray(_resized(image, (size[0], size[1]), shape))[: rows * side, : columns * side]
    patches = pixels.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
    flat = np.ascontiguousarray(patches).reshape(rows * columns, -1)
    return torch.from_numpy(flat.copy()), (rows, columns)


def upright(image: Image.Image) -> Image.Image:
    """A picture whole, in RGB, as it is seen.

    Raises:
        ValueError: its pixels have 32 bits, and which of them is white is not said.
    """
    turn = None
    if image.format != "TIFF":  # Pillow turns these itself
        try:
            turn = _TURNS.get(int(image.getexif().get(0x0112, 1)))
        except Exception:  # a damaged block, of as many kinds as there are formats
            turn = None
    image.load()
    if image.mode in ("I", "F"):
        raise ValueError("images: pixels of 32 bits, and which of them is white is not said")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _resized(image: Image.Image, size: tuple[int, int], shape: dict[str, Any]) -> Image.Image:
    height, width = size
    fitted = size if shape["resized"] is None else (shape["resized"][0], shape["resized"][1])
    if shape["fit"] == "crop":
        fitted = _covering(fitted, (image.height, image.width))
    top, left = (fitted[0] - height) // 2, (fitted[1] - width) // 2
    how = Image.Resampling[shape["resample"].upper()]
    if fitted[0] * fitted[1] <= _MOST_FITTED:
        whole = image.resize((fitted[1], fitted[0]), how)
        return whole.crop((left, top, left + width, top + height))
    down, right = image.height / fitted[0], image.width / fitted[1]
    box = (left * right, top * down, (left + width) * right, (top + height) * down)
    return image.resize((width, height), how, box=box)


def _covering(size: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int]:
    (height, width), (whole_height, whole_width) = size, whole
    if height * whole_width >= width * whole_height:
        return height, height * whole_width // whole_height
    return width * whole_height // whole_width, width
