"""A bias of attention's scores by the way from patch to patch."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.attention import GRID_ROWS_MULTIPLE
from model.encoders.grid import Grid, ways, weights_between
from model.layers import Layers, normal

_CLASS_WAYS = 3
"""From the class row to a patch, from a patch to it, from it to itself."""


class PatchBias(nn.Module):
    """A learned bias for each head and way, of a table's grid, read between for another one.

    Source: BEiT (2106.08254), and Swin (2103.14030) §3.2; between as in MiDaS 3.1 (2307.14460).

    Args:
        table: the grid whose ways the table holds.
        grid: that of the pictures.
        has_class: whether a class row stands before the patches.
        heads: A.
        layers: where weights come from.
    """

    index: Tensor

    def __init__(
        self, *, table: Grid, grid: Grid, has_class: bool, heads: int, layers: Layers
    ) -> None:
        super().__init__()
        self.grid, self.spread = grid, table
        self.share = layers.share
        self.class_ways = _CLASS_WAYS * has_class
        self.relative_bias: Any = layers.table(
            _count(table) + self.class_ways, heads, init=normal(0.02)
        )
        index = ways(grid)
        if has_class:
            index = F.pad(index, (1, 0, 1, 0))
            # In the order that BEiT's checkpoints have.
            first, to_class, itself = range(_count(grid), _count(grid) + _CLASS_WAYS)
            index[0], index[1:, 0], index[0, 0] = first, to_class, itself
        room = -len(index) % GRID_ROWS_MULTIPLE
        self.register_buffer("index", F.pad(index, (0, room, 0, room)), persistent=False)

    def forward(self, longest: int) -> Float[Tensor, "1 A L L"]:
        """For the first `longest` rows of pictures; rows beyond a picture have any."""
        index = self.index[:longest, :longest]
        if self.grid == self.spread:
            values = self.relative_bias(index)
        else:
            values = self._between().index_select(0, index.flatten()).unflatten(0, index.shape)
        return self.share(values).permute(2, 0, 1)[None]

    def _between(self) -> Float[Tensor, "ways A"]:
        device = self.index.device
        whole = self.relative_bias(
            torch.arange(_count(self.spread) + self.class_ways, device=device)
        )
        sizes = [2 * size - 1 for size in self.spread]
        weights: list[Tensor] = []
        for size, wanted in zip(sizes, self.grid, strict=True):
            place = torch.arange(2 * wanted - 1, device=device)
            sizes_there = torch.full_like(place, 2 * wanted - 1)
            weights.append(weights_between(place, sizes_there, table=size, kind="linear"))
        patches = whole[: _count(self.spread)].unflatten(0, sizes)
        down, right = (weight.to(whole.dtype) for weight in weights)
        values = torch.einsum("ri,ija,cj->rca", down, patches, right).flatten(0, 1)
        return torch.cat([values, whole[_count(self.spread) :]])


def _count(grid: Grid) -> int:
    rows, columns = grid
    return (2 * rows - 1) * (2 * columns - 1)
