"""Regions: what a rank holds of a parameter.

Tensor parallelism cuts a parameter into boxes along its first or second dim; ZeRO cuts a box,
flattened, into ranges.
"""

import functools
import math
from dataclasses import dataclass, replace

from torch import Tensor

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
    def of_box(cls, shape: tuple[int, ...], *box: Range) -> "Region":
        """A whole box."""
        return cls(shape=shape, box=box, start=0, stop=math.prod(b - a for a, b in box))

    @staticmethod
    @functools.cache
    def whole(shape: tuple[int, ...]) -> "Region":
        """All of a parameter."""
        return Region.of_box(shape, *((0, size) for size in shape))

    @property
    def num_elements(self) -> int:
        """Elements in the region."""
        return self.stop - self.start

    def cut(self, begin: int, end: int) -> "Region":
        """Elements `begin` to `end` of the region, or as many of them as there are."""
        if begin == 0 and self.start + end >= self.stop:
            return self
        return replace(self, start=self.start + begin, stop=min(self.stop, self.start + end))

    def take(self, whole: Tensor) -> Tensor:
        """The box of a whole parameter."""
        return whole[tuple(slice(start, stop) for start, stop in self.box)]
