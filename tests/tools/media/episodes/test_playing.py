"""What happens in an episode is what is told, and it leaves nothing behind."""

import random
from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("minigrid")

from tools.media.clips.composing import video
from tools.media.episodes import questions
from tools.media.episodes.playing import LostError, Player, going_through, picking_up
from tools.media.episodes.world import SIDE, World

TILE = 8
ROOMS = [(1, 2), (2, 1), (2, 2)]


def playable(play: Callable[[int], Any]) -> tuple[int, Any]:
    """The first seed that can be played, and what came of it."""
    for seed in range(100):
        try:
            return seed, play(seed)
        except LostError:
            continue
    raise AssertionError("no seed can be played")


def cells(world: World, wanted: Callable[[Any], bool]) -> dict[str, tuple[int, int]]:
    """Where things are, by name, in pixels."""
    height, width = world.height * TILE, world.width * TILE
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    found: dict[str, tuple[int, int]] = {}
    for x in range(world.width):
        for y in range(world.height):
            cell: Any = world.grid.get(x, y)
            if cell is not None and wanted(cell):
                found[f"{cell.color} {cell.type}"] = (left + x * TILE, top + y * TILE)
    return found


def changed(frames: list[Image.Image], place: tuple[int, int]) -> list[bool]:
    """Whether a cell looks other than in the first frame."""
    box = (*place, place[0] + TILE, place[1] + TILE)
    first = np.asarray(frames[0].crop(box))
    return [bool((np.asarray(frame.crop(box)) != first).any()) for frame in frames]


def runs(values: list[bool]) -> int:
    return sum(value for value, _ in groupby(values))


@pytest.mark.parametrize("rooms", ROOMS)
def test_things_go_in_their_order_and_come_back(rooms: tuple[int, int]) -> None:
    seed, frames = playable(
        lambda seed: picking_up(
            *(world := World(rooms, seed=seed, has_things=True), world.things[:3])
        )
    )
    world = World(rooms, seed=seed, has_things=True)
    places = cells(world, lambda cell: cell.type in ("key", "ball", "box"))
    assert {*places} == {*world.things}
    gone = {name: changed(frames, place) for name, place in places.items()}
    first, second, third, left = world.things
    assert not any(gone[left])
    assert [runs(gone[name]) for name in (first, second, third)] == [1, 1, 1]
    assert gone[first].index(True) < gone[second].index(True) < gone[third].index(True)
    # One comes back before the next goes, and long enough is it gone that clips see it.
    assert all(sum(each[at] for each in gone.values()) <= 1 for at in range(len(frames)))
    assert all(sum(gone[name]) >= 8 for name in (first, second, third))
    assert not any(each[-1] for each in gone.values())


@pytest.mark.parametrize("rooms", ROOMS)
@pytest.mark.parametrize("times", [1, 4])
def test_doors_open_as_often_as_it_is_told_and_are_closed(
    rooms: tuple[int, int], times: int
) -> None:
    seed, frames = playable(
        lambda seed: going_through(
            World(rooms, seed=seed, has_things=False),
            *(times,),
            chance=random.Random(seed),
            steps=80,
        )
    )
    places = cells(World(rooms, seed=seed, has_things=False), lambda cell: cell.type == "door")
    assert len(places) == {2: 1, 4: 4}[rooms[0] * rooms[1]]
    opened = {name: changed(frames, place) for name, place in places.items()}
    assert sum(map(runs, opened.values())) == times
    assert not any(each[-1] for each in opened.values())
    assert len(frames) == 80


def test_both_orders_begin_and_end_alike() -> None:
    _, (one, other) = playable(lambda seed: questions.orders((1, 2), seed))
    assert one.frames[0] == other.frames[0]
    assert one.asked["right"] == 0
    assert other.asked == {**one.asked, "right": 1}
    names = [one.asked["one"], one.asked["other"]]
    assert one.told == f"First picked up: {names[0]}\n\nThen: {names[1]}"
    assert other.told == f"First picked up: {names[1]}\n\nThen: {names[0]}"


def test_episodes_of_doors_are_equally_long_and_begin_alike() -> None:
    _, episodes = playable(lambda seed: questions.doors((2, 2), seed))
    assert [each.asked["number"] for each in episodes] == [0, 1, 2, 3]
    assert len({len(each.frames) for each in episodes}) == 1
    assert all(each.frames[:4] == episodes[0].frames[:4] for each in episodes)


def test_the_same_bytes_for_the_same_seed() -> None:
    def clips(seed: int) -> list[bytes]:
        [(_, _, episodes)] = questions.played(questions.orders, ((1, 2),), 1, name="a", seed=seed)
        return [video(each.frames, [100] * len(each.frames)) for each in episodes]

    assert clips(0) == clips(0)
    assert clips(0) != clips(1)


def test_who_finds_no_way_is_lost() -> None:
    world = World((1, 2), seed=0, has_things=True)
    with pytest.raises(LostError):
        Player(world).pick_up(
            next(f"{c} key" for c in ("red", "green", "blue") if f"{c} key" not in world.things)
        )
