"""The encoder of pictures: patches of each picture see each other, each picture alone.

Letters in shapes: N pictures, P patches of the largest, L rows of the largest (its class row
included), E encoder width, A heads, C numbers of a patch, M vectors.
"""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks_semicausal import Block, norm_of
from .encoder_semicausal import SpanAttention


def table_grid(shape: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of the learned positions."""
    if shape["table"] is not None:
        rows, columns = shape["table"]
    elif shape["size"] is not None:
        rows, columns = (side // shape["patch_pixels"] for side in shape["size"])
    else:
        rows = columns = isqrt(shape["max_patches"])
    return rows, columns


class PatchBias(nn.Module):
    """A bias of attention's scores for each head, by the way from patch to patch (BEiT)."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.table = table_grid(shape)
        self.has_class = shape["class_token"] != "none"
        rows, columns = self.table
        ways = (2 * rows - 1) * (2 * columns - 1)
        self.relative_bias = nn.Embedding(ways + 3 * self.has_class, shape["heads"])

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """[1, A, L, L] for pictures of these rows and columns of patches."""
        rows, columns = grid
        weight = self.relative_bias.weight
        sizes = [2 * side - 1 for side in self.table]
        patches, rest = weight.split([sizes[0] * sizes[1], 3 * self.has_class])
        if grid != self.table:
            spread = patches.unflatten(0, sizes).permute(2, 0, 1)[None].float()
            wanted = (2 * rows - 1, 2 * columns - 1)
            spread = F.interpolate(spread, wanted, mode="bilinear", align_corners=False)
            patches = spread[0].permute(1, 2, 0).flatten(0, 1).to(weight.dtype)
        place = torch.arange(rows * columns, device=weight.device)
        row, column = place // columns, place % columns
        down = row[:, None] - row[None] + rows - 1
        right = column[:, None] - column[None] + columns - 1
        bias = patches[down * (2 * columns - 1) + right]
        if self.has_class:
            # From the class row to a patch, from a patch to it, from it to itself.
            bias = F.pad(bias, (0, 0, 1, 0, 1, 0))
            bias[0], bias[1:, 0], bias[0, 0] = rest[0], rest[1], rest[2]
        return bias.permute(2, 0, 1)[None]


class ImageEncoder(nn.Module):
    """One linear layer over each patch, learned positions, blocks (ViT, CLIP, SigLIP, BEiT)."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.shape = shape
        width, heads, depth = shape["width"], shape["heads"], shape["num_layers"]
        self.class_rows = int(shape["class_token"] != "none")
        self.projection = nn.Linear(3 * shape["patch_pixels"] ** 2, width)
        if self.class_rows:
            self.class_embedding = nn.Embedding(1, width)
        if shape["positions"]:
            rows, columns = table_grid(shape)
            self.positions = nn.Embedding(self.class_rows + rows * columns, width)
        if shape["embedding_norm"]:
            self.embedding_norm = norm_of(shape)
        num_biases = {"none": 0, "shared": 1, "each": depth}[shape["relative_positions"]]
        self.patch_biases = nn.ModuleList(PatchBias(shape) for _ in range(num_biases))
        attentions = (SpanAttention({"width": width, "heads": heads}) for _ in range(depth))
        self.blocks = nn.ModuleList(Block(shape, attention) for attention in attentions)
        if shape["final_norm"]:
            self.final_norm = norm_of(shape)

    def counts(self, grids: Tensor) -> Tensor:
        """[N] vectors of pictures of these rows and columns [N, 2] of patches."""
        return grids.prod(dim=1) + int(self.shape["class_token"] == "kept")

    def forward(self, patches: Tensor, grids: Tensor) -> Tensor:
        """Vectors [M, E] of all pictures, one after the other.

        Args:
            patches: [N, P, C] red, then green, then blue of each patch's pixels, row after row,
                from 0 to 255; anything behind the last of a picture.
            grids: [N, 2] rows and columns of patches of each.
        """
        first = self.class_rows
        x = self.projection(self._normalized(patches))
        if first:
            x = torch.cat([self.class_embedding.weight.expand(len(x), 1, -1), x], dim=1)
        if self.shape["positions"]:
            x = x + self._positions(grids, longest=x.shape[1])
        if self.shape["embedding_norm"]:
            x = self.embedding_norm(x)
        L = x.shape[1]
        rows = torch.arange(L, device=x.device)
        is_real = rows < first + grids.prod(dim=1)[:, None]
        bias = x.new_zeros(1, 1, 1, L).masked_fill(~is_real[:, None, None, :], float("-inf"))
        whole = bias
        for number, block in enumerate(self.blocks):
            if number < len(self.patch_biases):
                rows_there, columns_there = grids[0].tolist()
                whole = bias + self.patch_biases[number]((rows_there, columns_there))
            x = block(x, whole)
        if self.shape["final_norm"]:
            x = self.final_norm(x)
        return x[is_real & (rows >= int(self.shape["class_token"] == "dropped"))]

    def _normalized(self, patches: Tensor) -> Tensor:
        pixels = patches.float().unflatten(2, (3, -1))
        mean, std = (pixels.new_tensor(self.shape[name])[:, None] for name in ("mean", "std"))
        pixels = (pixels - 255 * mean) / (255 * std)
        return pixels.flatten(2).to(self.projection.weight.dtype)

    def _positions(self, grids: Tensor, *, longest: int) -> Tensor:
        """[N, L, E] the learned positions, between those of the table where grids differ."""
        table, first = table_grid(self.shape), self.class_rows
        weight = self.positions.weight
        patches = weight[first:]
        found: list[Tensor] = []
        for rows, columns in grids.tolist():
            here = patches
            if (rows, columns) != table:
                spread = patches.unflatten(0, table).permute(2, 0, 1)[None].float()
                spread = F.interpolate(spread, (rows, columns), mode="bicubic", align_corners=False)
                here = spread[0].permute(1, 2, 0).flatten(0, 1).to(weight.dtype)
            here = torch.cat([weight[:first], here])
            found.append(F.pad(here, (0, 0, 0, longest - len(here))))
        return torch.stack(found)
