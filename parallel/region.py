"""Regions: what a rank holds of a parameter.

Tensor parallelism cuts a parameter into boxes along its first or second dim; ZeRO cuts a box,
flattened, into ranges.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from model.layers import placement

Range = tuple[int, int]
"""First index and one past the last."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A flat range of a box of a parameter.

    Attributes:
        shape: of the whole parameter, without padding.
        box: a rectangular part of it: a range for each dim.
        start: first element of the region, in the flattened box.
        stop: one past the last one.
    """

    shape: tuple[int, ...]
    box: tuple[Range, ...]
    start: int
    stop: int

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Region":
        """All of a parameter."""
        box = tuple((0, size) for size in shape)
        return cls(shape=shape, box=box, start=0, stop=math.prod(shape))

    @classmethod
    def held(cls, parameter: Tensor) -> "Region":
        """All that this rank's tensor group member holds of a parameter, padding left out."""
        place = placement(parameter)
        return cls(shape=place.shape, box=place.box, start=0, stop=place.num_elements)

    @property
    def num_elements(self) -> int:
        """Elements in the region."""
        return self.stop - self.start

    def cut(self, begin: int, end: int) -> "Region":
        """Elements `begin` to `end` of the region, or as many of them as there are."""
        return replace(self, start=self.start + begin, stop=min(self.stop, self.start + end))
