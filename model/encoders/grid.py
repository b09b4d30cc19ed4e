"""Where the patches of a picture lie in its grid, and tables of one grid read at another."""

from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of patches."""

_SHARPNESS = -0.75
"""Of the cubic that torch's `interpolate` has, and so the classes of transformers."""


def native_grid(height: int, width: int, *, patch_pixels: int, most: int) -> Grid:
    """The grid that keeps a picture's aspect: its own in whole patches, or the largest that fits.

    A side is rounded to patches, and has one at least. Whole numbers alone are computed with, so
    that the grid is the same everywhere.

    Args:
        height: pixels.
        width: pixels.
        patch_pixels: side of a patch.
        most: patches of a grid.

    Source: NaViT (2307.06304) §2, with a bound in place of its sampled resolutions.
    """
    rows = max(1, (2 * height + patch_pixels) // (2 * patch_pixels))
    columns = max(1, (2 * width + patch_pixels) // (2 * patch_pixels))
    if rows * columns <= most:
        return rows, columns
    rows = min(most, max(1, isqrt(most * height // width)))
    columns = min(most // rows, max(1, isqrt(most * width // height)))
    return rows, columns


def cubic_weights(places: Tensor, sizes: Tensor, *, table: int) -> Float[Tensor, "R table"]:
    """What each entry along one dim of a table weighs at places of grids of other sizes.

    The same as `torch.nn.functional.interpolate` with `mode="bicubic"`, whose weights are products
    of those along rows and columns: entries beyond an end are the last one.

    Args:
        places: [R] row (or column) of a patch.
        sizes: [R] rows (or columns) of its grid.
        table: of the table.
    """
    at = (places.float() + 0.5) * (table / sizes.float()) - 0.5
    first = at.floor()
    beyond = at - first
    weights = at.new_zeros(len(at), table)
    for tap in range(-1, 3):
        entry = (first.long() + tap).clamp(0, table - 1)
        weights.scatter_add_(1, entry[:, None], _cubic((beyond - tap).abs())[:, None])
    return weights


def _cubic(distance: Tensor) -> Tensor:
    a, x = _SHARPNESS, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
