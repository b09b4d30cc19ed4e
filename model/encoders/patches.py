"""Pictures as patches: what encoders of pictures and of videos have in common."""

from collections.abc import Iterator, Sequence
from math import isqrt
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from model.encoders.grid import Grid, native_grid
from model.encoders.protocol import ItemEncoderKind

Side = Annotated[int, Field(ge=1, le=2**14)]
MOST_PATCHES = 2**20
_THREE = Field(min_length=3, max_length=3)


class PatchEncoderKind(ItemEncoderKind):
    """How pictures become patches.

    Either all get one `size`, or each keeps its aspect in at most `max_patches`.
    """

    patch_pixels: Annotated[int, Field(ge=1, le=2**8)] = 16
    """Side of a patch."""
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Height and width in pixels that every picture gets; what is beyond whole patches, right and
    below, is not read. Default: its own, rounded to patches."""
    max_patches: Annotated[int, Field(ge=1, le=MOST_PATCHES)] | None = None
    """Of one picture that keeps its aspect; larger ones are made as small as that."""
    fit: Literal["stretch", "crop"] = "stretch"
    """How a picture gets another aspect: by `stretch`, or by `crop` of what is beyond its middle
    (CLIP)."""
    resized: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Height and width to which a picture is fitted before the middle of `size` is cut out of it.
    Default: `size` itself."""
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    """Between pixels; either looks at all pixels of a picture that is made smaller (antialias)."""
    mean: Annotated[list[float], _THREE] = Field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Of red, green and blue between 0 and 1, which is taken away."""
    std: Annotated[list[Annotated[float, Field(gt=0)]], _THREE] = Field(
        default_factory=lambda: [0.5, 0.5, 0.5]
    )
    """Of the same, which is divided by."""

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if (self.size is None) == (self.max_patches is None):
            raise ValueError(
                "size: set it to the height and width of all pictures, or max_patches for those "
                "that keep their aspect; one of the two"
            )
        if self.size is not None and min(self.size) < self.patch_pixels:
            raise ValueError(
                f"size: {self.size} holds no patch of {self.patch_pixels} pixels: raise it, or "
                "lower patch_pixels"
            )
        return self

    @property
    def fixed_grid(self) -> Grid | None:
        """Rows and columns of patches of every picture, None where each has its own."""
        if self.size is None:
            return None
        height, width = self.size
        return height // self.patch_pixels, width // self.patch_pixels

    @property
    def largest_grid(self) -> Grid:
        """One of as many patches as a picture may have."""
        return self.fixed_grid or (self.max_patches or 1, 1)

    @property
    def table_grid(self) -> Grid:
        """Rows and columns of learned positions, where `table` does not tell them."""
        side = isqrt(self.max_patches or 1)
        return self.fixed_grid or (side, side)

    def grid(self, size: Sequence[int]) -> Grid:
        """Rows and columns of patches of a picture of so many pixels, height and width."""
        height, width = size
        if self.max_patches is None:
            assert self.fixed_grid is not None, "one of the two is set"
            return self.fixed_grid
        return native_grid(height, width, patch_pixels=self.patch_pixels, most=self.max_patches)

    def picture_faults(self, path: str) -> Iterator[str]:
        """Keys that do not fit each other."""
        for key, is_set in (("fit", self.fit == "crop"), ("resized", self.resized is not None)):
            if is_set and self.size is None:
                yield (
                    f"{path}.{key}: cuts pictures to one size, and {path}.max_patches keeps the "
                    f"aspect of each: leave it out, or set {path}.size"
                )
        if any(a > b for a, b in zip(self.size or (), self.resized or (), strict=False)):
            yield (
                f"{path}.resized: {self.resized} is smaller than {path}.size ({self.size}): what "
                "is cut out must lie inside"
            )

    def normalized(self, patches: Tensor) -> Float[Tensor, "R _"]:
        """Pixels [R, 3 n] of 0 to 255, red, then green, then blue, in fp32 with mean and deviation.

        By numbers of the host: buffers would be rounded in a model of 16 bits.
        """
        pixels = patches.to(torch.float32, copy=True).view(len(patches), 3, patches.shape[1] // 3)
        for color, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            pixels[:, color].sub_(255 * mean).div_(255 * std)
        return pixels.view(patches.shape)


PICTURE_KEYS = frozenset({"size", "max_patches", "fit", "resized", "resample"})
"""Which pictures are read: nothing that weights depend on."""
