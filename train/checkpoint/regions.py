"""Comparing and copying regions of a tensor, however each of them was cut."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from parallel.region import Range, Region

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
            not start <= stop <= size for (start, stop), size in zip(box, shape, strict=True)
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
    if at.box == source_at.box:
        first, last = max(at.start, source_at.start), min(at.stop, source_at.stop)
        if first >= last:
            return 0
        part = source[first - source_at.start : last - source_at.start]
        target[first - at.start : last - at.start].copy_(part)
        return last - first
    assert at.box[2:] == source_at.box[2:], "only the first two dims are cut"
    here, there = _Rows(at), _Rows(source_at)
    columns = max(here.columns[0], there.columns[0]), min(here.columns[1], there.columns[1])
    width = columns[1] - columns[0]
    if width <= 0:
        return 0
    touched = _common(here.touched(columns), there.touched(columns))
    full = _common(here.full(columns), there.full(columns))
    num_copied = 0
    # Only rows in which one of the four ends of the two ranges lies are partial.
    edges = touched
    if len(full) > 0:
        edges = (*range(touched.start, full.start), *range(full.stop, touched.stop))
        size = (len(full), width)
        views = (
            tensor.as_strided(
                size,
                (rows.width, 1),
                tensor.storage_offset() + rows.position(full[0], columns[0]),
            )
            for tensor, rows in ((target, here), (source, there))
        )
        next(views).copy_(next(views))
        num_copied += len(full) * width
    for row in edges:
        first, last = columns
        for rows in (here, there):
            first = max(first, rows.columns_from(row))
            last = min(last, rows.columns_until(row))
        if first >= last:
            continue
        begin, source_begin = here.position(row, first), there.position(row, first)
        part = source[source_begin : source_begin + last - first]
        target[begin : begin + last - first].copy_(part)
        num_copied += last - first
    return num_copied


def may_overlap(one: Region, other: Region) -> bool:
    """Whether two regions of a tensor may have elements in common; False if they have none.

    Rows that only their ends share are not told apart, so True is no promise.
    """
    if one.box == other.box:
        return max(one.start, other.start) < min(one.stop, other.stop)
    here, there = _Rows(one), _Rows(other)
    columns = max(here.columns[0], there.columns[0]), min(here.columns[1], there.columns[1])
    if columns[0] >= columns[1]:
        return False
    return len(_common(here.touched(columns), there.touched(columns))) > 0


class _Rows:
    """A region seen as rows: everything after the second dim is part of a column."""

    def __init__(self, region: Region) -> None:
        box = region.box
        if len(box) < 2:
            # A vector is one row, so that all but its ends is copied at once.
            box = ((0, 1), *box) if box else ((0, 1), (0, 1))
        inner = _size(box[2:])
        self.first_row, self.last_row = box[0]
        self.columns = box[1][0] * inner, box[1][1] * inner
        self.width = self.columns[1] - self.columns[0]
        self._start, self._stop = region.start, region.stop

    def position(self, row: int, column: int) -> int:
        """Index of an element in the flat range."""
        return (row - self.first_row) * self.width + column - self.columns[0] - self._start

    def columns_from(self, row: int) -> int:
        """First column of a row that the range may hold."""
        return self.columns[0] + self._start - (row - self.first_row) * self.width

    def columns_until(self, row: int) -> int:
        """One past the last column of a row that the range may hold."""
        return self.columns[0] + self._stop - (row - self.first_row) * self.width

    def touched(self, columns: Range) -> range:
        """Rows in which the range may hold some of the columns."""
        left, right = columns[0] - self.columns[0], columns[1] - self.columns[0]
        # Some element of the row lies after the start, and some before the stop.
        first = (self._start - right) // self.width + 1
        last = -((left - self._stop) // self.width)
        return self._within(first, last)

    def full(self, columns: Range) -> range:
        """Rows in which the range holds all of the columns."""
        left, right = columns[0] - self.columns[0], columns[1] - self.columns[0]
        first = -((left - self._start) // self.width)
        last = (self._stop - right) // self.width + 1
        return self._within(first, last)

    def _within(self, first: int, last: int) -> range:
        begin = max(self.first_row, self.first_row + first)
        return range(begin, max(begin, min(self.last_row, self.first_row + last)))


def _common(rows: range, others: range) -> range:
    first = max(rows.start, others.start)
    return range(first, max(first, min(rows.stop, others.stop)))


def _overlap(box: Box, other: Box) -> bool:
    return _size(box) > 0 and all(
        max(start, other_start) < min(stop, other_stop)
        for (start, stop), (other_start, other_stop) in zip(box, other, strict=True)
    )


def _size(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def _shown(box: Box) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"
