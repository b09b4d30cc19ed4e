"""Where the patches of a picture lie in its grid, and tables of one grid read at another."""

from math import isqrt
from typing import Literal

import torch
from jaxtyping import Float, Int64
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


def weights_between(
    places: Tensor, sizes: Tensor, *, table: int, kind: Literal["linear", "cubic"] = "cubic"
) -> Float[Tensor, "R table"]:
    """What each entry along one dim of a table weighs at places of grids of other sizes.

    The same as `torch.nn.functional.interpolate` of the same kind, whose weights are products of
    those along rows and columns: entries beyond an end are the last one.

    Args:
        places: [R] row (or column) of a patch.
        sizes: [R] rows (or columns) of its grid.
        table: of the table.
        kind: of the function between entries.
    """
    at = (places.float() + 0.5) * (table / sizes.float()) - 0.5
    first = at.floor()
    beyond = at - first
    weights = at.new_zeros(len(at), table)
    for tap in (0, 1) if kind == "linear" else (-1, 0, 1, 2):
        distance = (beyond - tap).abs()
        weight = 1 - distance if kind == "linear" else _cubic(distance)
        entry = (first.long() + tap).clamp(0, table - 1)
        weights.scatter_add_(1, entry[:, None], weight[:, None])
    return weights


def nearest(places: Tensor, sizes: Tensor, *, table: int) -> Int64[Tensor, "R"]:
    """The entry along one dim of a table that is read at places of grids of other sizes.

    The same as `torch.nn.functional.interpolate` of the kind nearest.

    Args:
        places: [R] row (or column, or time) of a patch.
        sizes: [R] rows (or columns, or times) of its grid.
        table: of the table.
    """
    return torch.div(places * table, sizes, rounding_mode="floor")


def _cubic(distance: Tensor) -> Tensor:
    a, x = _SHARPNESS, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, far)


def ways(grid: Grid) -> Int64[Tensor, "n n"]:
    """Which of the (2 rows - 1) (2 columns - 1) ways leads to each patch from each other one.

    Entry [i, j] is for the query i and the key j, patches row after row.
    """
    rows, columns = grid
    place = torch.arange(rows * columns)
    row, column = place // columns, place % columns
    down = row[:, None] - row[None] + rows - 1
    right = column[:, None] - column[None] + columns - 1
    return down * (2 * columns - 1) + right
