"""Comparing and copying regions of a tensor, however each of them was cut."""

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

from torch import Tensor

from model.region import Range, Region

Box = Sequence[Range]


def tiling_fault(shape: tuple[int, ...], regions: Sequence[Region]) -> str | None:
    """What is wrong if the regions do not hold each element of a tensor exactly once.

    Returns:
        The fault, to be followed by "are not there exactly once"; None if there is none.
    """
    ranges: dict[tuple[Range, ...], list[Range]] = {}
    for region in regions:
        ranges.setdefault(region.box, []).append((region.start, region.stop))
    boxes = sorted(ranges)
    for number, box in enumerate(boxes):
        if len(box) != len(shape) or any(
            not 0 <= start <= stop <= size for (start, stop), size in zip(box, shape, strict=True)
        ):
            return f"the elements of box {_shown(box)} in shape {list(shape)}"
        for other in boxes[:number]:
            if _overlap(box, other):
                return f"elements of the boxes {_shown(other)} and {_shown(box)}"
    whole = math.prod(shape)
    if sum(map(_size, boxes)) != whole:
        return f"elements outside the boxes {', '.join(map(_shown, boxes)) or '(none)'}"
    for box in boxes:
        end = _size(box)
        bounds = [(0, 0), *sorted(ranges[box]), (end, end)]
        for (_, last), (first, _) in pairwise(bounds):
            if last != first:
                where = "" if end == whole else f" of box {_shown(box)}"
                return f"elements {min(last, first)} to {max(last, first)}{where}"
    return None


def copy_overlap(target: Tensor, at: Region, source: Tensor, source_at: Region) -> int:
    """Copies what two regions of the same tensor have in common.

    Args:
        target: [N] elements of `at`.
        at: region of N elements.
        source: [M] elements of `source_at`.
        source_at: region of M elements.

    Returns:
        How many elements were copied.
    """
    if at.box == source_at.box:  # nearly all
        start, stop = max(at.start, source_at.start), min(at.stop, source_at.stop)
        if start >= stop:
            return 0
        target[start - at.start : stop - at.start] = source[
            start - source_at.start : stop - source_at.start
        ]
        return stop - start
    num_copied = 0
    for here, there in product(_rectangles(at), _rectangles(source_at)):
        rows, columns = _common(here.rows, there.rows), _common(here.columns, there.columns)
        if rows and columns:
            here.part(target, rows, columns).copy_(there.part(source, rows, columns))
            num_copied += len(rows) * len(columns)
    return num_copied


def overlap(one: Region, other: Region) -> bool:
    """Whether two regions of a tensor have elements in common."""
    if one.box == other.box:  # nearly all
        return max(one.start, other.start) < min(one.stop, other.stop)
    return any(
        _common(here.rows, there.rows) and _common(here.columns, there.columns)
        for here, there in product(_rectangles(one), _rectangles(other))
    )


class _Rectangle(NamedTuple):
    """Part of a region seen as a matrix: whatever lies after the second dim is part of a column.

    Attributes:
        rows: of the parameter.
        columns: of the parameter.
        begin: where its first element lies in the region.
        width: elements from one row to the next in the region.
    """

    rows: range
    columns: range
    begin: int
    width: int

    def part(self, flat: Tensor, rows: range, columns: range) -> Tensor:
        """Some rows and columns of it, as a view of the flat region."""
        down, right = rows.start - self.rows.start, columns.start - self.columns.start
        begin = flat.storage_offset() + self.begin + down * self.width + right
        return flat.as_strided((len(rows), len(columns)), (self.width, 1), begin)


def _rectangles(region: Region) -> list[_Rectangle]:
    """A flat range of a box: the rest of a row, whole rows, the beginning of a row."""
    if not region.num_elements:
        return []
    box = region.box
    if len(box) < 2:
        # A vector is one row.
        box = ((0, 1), *box) if box else ((0, 1), (0, 1))
    inner = _size(box[2:])
    first_row, first_column = box[0][0], box[1][0] * inner
    width = box[1][1] * inner - first_column
    # Rows end at multiples of the width; the whole ones among them stay together.
    ends = -(-region.start // width) * width, region.stop // width * width
    cuts = {cut for cut in ends if region.start < cut < region.stop}
    found: list[_Rectangle] = []
    for start, stop in pairwise(sorted({region.start, region.stop} | cuts)):
        row, column = divmod(start, width)
        num_rows = max(1, (stop - start) // width)
        columns = range(first_column + column, first_column + column + (stop - start) // num_rows)
        rows = range(first_row + row, first_row + row + num_rows)
        found.append(_Rectangle(rows, columns, start - region.start, width))
    return found


def _common(some: range, others: range) -> range:
    return range(max(some.start, others.start), min(some.stop, others.stop))


def _overlap(box: Box, other: Box) -> bool:
    return _size(box) > 0 and all(
        max(start, other_start) < min(stop, other_stop)
        for (start, stop), (other_start, other_stop) in zip(box, other, strict=True)
    )


def _size(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def _shown(box: Box) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"
