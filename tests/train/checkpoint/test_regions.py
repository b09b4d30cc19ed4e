"""Cutting and copying boxes, against plain indexing."""

import random
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.region import Range, Region
from train.checkpoint.regions import copy_overlap, overlap, tiling_fault


def _cut(bounds: tuple[int, int], chance: random.Random) -> list[tuple[int, int]]:
    start, stop = bounds
    inner = sorted(
        chance.sample(range(start + 1, stop), min(chance.randint(0, 3), stop - start - 1))
    )
    ends = [start, *inner, stop]
    return list(pairwise(ends))


def _regions(shape: tuple[int, ...], chance: random.Random) -> list[Region]:
    """A random tiling: boxes along the first two dims, each cut into flat ranges."""
    boxes: list[tuple[tuple[int, int], ...]] = [()]
    for dim, size in enumerate(shape):
        cuts = _cut((0, size), chance) if dim < 2 else [(0, size)]
        boxes = [(*box, cut) for box in boxes for cut in cuts]
    regions = [
        Region(shape=shape, box=box, start=start, stop=stop)
        for box in boxes
        for start, stop in _cut((0, prod(stop - start for start, stop in box)), chance)
    ]
    chance.shuffle(regions)
    return regions


def _plain(tensor: Tensor, region: Region) -> Tensor:
    """A flat range of a box, the obvious way."""
    box = tensor[tuple(slice(*bounds) for bounds in region.box)]
    return box.flatten()[region.start : region.stop]


@settings(max_examples=250, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=3), st.randoms(use_true_random=False))
def test_any_pieces_fill_any_others(sizes: list[int], chance: random.Random) -> None:
    shape = tuple(sizes)
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    sources = _regions(shape, chance)
    assert tiling_fault(shape, sources) is None
    for region in _regions(shape, chance):
        # Views with an offset, as slices of flat groups are.
        target = torch.full((region.num_elements + 2,), -1)
        num_copied = 0
        for source_at in sources:
            before = num_copied
            source = torch.cat((torch.tensor([-7]), _plain(whole, source_at)))[1:]
            num_copied += copy_overlap(target[1:-1], region, source, source_at)
            assert overlap(region, source_at) == (num_copied > before)
        assert num_copied == region.num_elements
        assert torch.equal(target[1:-1], _plain(whole, region))
        assert target[0] == target[-1] == -1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=2), st.randoms(use_true_random=False))
def test_what_is_missing_or_twice_is_found(sizes: list[int], chance: random.Random) -> None:
    shape = tuple(sizes)
    pieces = _regions(shape, chance)
    number = chance.randrange(len(pieces))
    assert tiling_fault(shape, pieces[:number] + pieces[number + 1 :]) is not None
    assert tiling_fault(shape, [*pieces, pieces[number]]) is not None


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ([(((0, 4), (0, 6)), (0, 23))], "elements 23 to 24"),
        ([(((0, 4), (0, 6)), (0, 13)), (((0, 4), (0, 6)), (12, 24))], "elements 12 to 13"),
        ([(((0, 4), (0, 3)), (0, 12))], "elements outside the boxes [0:4, 0:3]"),
        (
            [(((0, 4), (0, 3)), (0, 12)), (((0, 4), (2, 6)), (0, 16))],
            "elements of the boxes [0:4, 0:3] and [0:4, 2:6]",
        ),
        (
            [(((0, 4), (0, 3)), (0, 12)), (((0, 4), (3, 6)), (0, 11))],
            "elements 11 to 12 of box [0:4, 3:6]",
        ),
        ([(((0, 5), (0, 6)), (0, 30))], "the elements of box [0:5, 0:6] in shape [4, 6]"),
        ([(((0, 24),), (0, 24))], "the elements of box [0:24] in shape [4, 6]"),
        ([], "elements outside the boxes (none)"),
    ],
)
def test_faults_are_told(pieces: list[tuple[tuple[Range, ...], Range]], fault: str) -> None:
    regions = [
        Region(shape=(4, 6), box=box, start=start, stop=stop) for box, (start, stop) in pieces
    ]
    assert tiling_fault((4, 6), regions) == fault


def test_large_boxes_are_copied_by_rows() -> None:
    """A whole tensor from two column boxes: the copies must not go element by element."""
    whole = torch.arange(3000 * 400).view(3000, 400)
    target = torch.empty(3000 * 400 - 10, dtype=whole.dtype)
    for columns in ((0, 150), (150, 400)):
        source = whole[:, slice(*columns)].flatten()
        box = ((0, 3000), columns)
        source_at = Region(shape=(3000, 400), box=box, start=0, stop=source.numel())
        at = Region.whole((3000, 400)).cut(5, 5 + target.numel())
        copy_overlap(target, at, source, source_at)
    assert torch.equal(target, whole.flatten()[5:-5])


def test_a_box_without_columns_overlaps_nothing() -> None:
    nothing = Region(shape=(4, 6), box=((0, 4), (2, 2)), start=0, stop=0)
    assert not overlap(nothing, Region.whole((4, 6)))
