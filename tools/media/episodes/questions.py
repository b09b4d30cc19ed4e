"""Records of episodes: documents for a corpus, and what tasks ask (`configs/task/episodes`)."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tools.media.clips.composing import video
from tools.media.episodes.playing import LostError, going_through, picking_up
from tools.media.episodes.world import Rooms, World
from tools.media.scenes import NUMBERS
from train.errors import DataError

Row = Mapping[str, Any]

DOCUMENT: Final = pa.schema([("id", pa.string()), ("video", pa.binary()), ("text", pa.string())])
"""What `tools.corpus build` reads: a video, and the text behind it."""
_OF_ALL: Final = [
    *(("group", pa.string()), ("rooms", pa.string())),
    *(("video", pa.binary()), ("told", pa.string())),
]
ORDER: Final = pa.schema(
    [*_OF_ALL, ("one", pa.string()), ("other", pa.string()), ("right", pa.int64())]
)
BEFORE: Final = pa.schema(
    [
        *(*_OF_ALL, ("thing", pa.string())),
        *(("choices", pa.list_(pa.string())), ("right", pa.int64())),
    ]
)
DOORS: Final = pa.schema([*_OF_ALL, ("number", pa.int64())])

MOST_DOORS: Final = 4
_MILLISECONDS: Final = 100
"""Of a frame."""
_STEPS: Final = 64
"""Of an episode of doors."""
_TRIES: Final = 200
_ROWS_AT_ONCE: Final = 256


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What happened in a world, and what is asked of it.

    Attributes:
        frames: all that was seen.
        told: in words.
        asked: columns of a task's row, but for the video.
    """

    frames: list[Image.Image]
    told: str
    asked: dict[str, Any]


Play = Callable[[Rooms, int], list[Episode]]
"""Episodes of one world, of its rooms and seed, which differ in what happens alone."""


def orders(rooms: Rooms, seed: int) -> list[Episode]:
    """Two things in either order: which came first?"""
    one, other, *_ = _things(rooms, seed)
    return [
        Episode(
            frames=picking_up(World(rooms, seed=seed, has_things=True), things),
            told=_told(things),
            asked={"one": one, "other": other, "right": right},
        )
        for right, things in enumerate(((one, other), (other, one)))
    ]


def befores(rooms: Rooms, seed: int) -> list[Episode]:
    """Three things, forwards and backwards: which came just before the one in the middle?"""
    names = _things(rooms, seed)
    first, middle, last, _ = names
    choices = random.Random(f"choices {seed}").sample(names, len(names))
    choices.remove(middle)
    return [
        Episode(
            frames=picking_up(World(rooms, seed=seed, has_things=True), things),
            told=_told(things),
            asked={
                **{"thing": middle, "choices": choices},
                "right": choices.index(things[0]),
            },
        )
        for things in ((first, middle, last), (last, middle, first))
    ]


def doors(rooms: Rooms, seed: int) -> list[Episode]:
    """One to four times a door is opened: how often?"""
    return [
        Episode(
            frames=going_through(
                World(rooms, seed=seed, has_things=False),
                number,
                chance=random.Random(f"doors {seed}"),
                steps=_STEPS,
            ),
            told=f"Doors opened: {NUMBERS[number - 1]}",
            asked={"number": number - 1},
        )
        for number in range(1, MOST_DOORS + 1)
    ]


PLAYS: Final[Mapping[str, tuple[Play, pa.Schema]]] = {
    "episode_order": (orders, ORDER),
    "episode_before": (befores, BEFORE),
    "episode_doors": (doors, DOORS),
}
"""By task: what is played, and its records."""


Played = tuple[str, Rooms, list[Episode]]
"""A world's name, its rooms, and its episodes."""


def played(
    play: Play, rooms: tuple[Rooms, ...], count: int, *, name: str, seed: int
) -> Iterator[Played]:
    """Worlds until so many episodes are played, each with its name and rooms.

    World `number` of a name is the same whatever else is made.

    Raises:
        DataError: no world can be played.
    """
    number = found = 0
    while found < count:
        kind = rooms[number % len(rooms)]
        for attempt in range(_TRIES):
            digest = hashlib.sha256(f"{seed} {name} {number} {attempt}".encode()).digest()
            try:
                episodes = play(kind, int.from_bytes(digest[:4], "big"))
            except LostError:
                continue
            break
        else:
            raise DataError(f"{name}: the bot finds its way in no world: take another --seed")
        yield f"{name}/{number}", kind, episodes
        number += 1
        found += len(episodes)


def asked(worlds: Iterator[Played]) -> Iterator[Row]:
    """What tasks ask of each episode."""
    for name, rooms, episodes in worlds:
        for each in episodes:
            yield _row(name, rooms, each, _clip(each.frames))


def asked_of_one_frame(worlds: Iterator[Played], *, seed: int) -> Iterator[Row]:
    """The same of one frame, drawn among all of a world's and the same for all of its episodes."""
    for name, rooms, episodes in worlds:
        chance = random.Random(f"{seed} frame {name}")
        still = _clip([chance.choice(chance.choice(episodes).frames)])
        for each in episodes:
            yield _row(name, rooms, each, still)


def documents(path: Path) -> Iterator[Row]:
    """Documents of a task's file: an episode and what happened, behind a space as an answer is."""
    number = 0
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False):
            for row in batch.to_pylist():
                yield {
                    "id": f"{row['group']}/{number}",
                    "video": row["video"],
                    "text": f" {row['told']}",
                }
                number += 1


def _things(rooms: Rooms, seed: int) -> list[str]:
    return World(rooms, seed=seed, has_things=True).things


def _told(things: tuple[str, ...]) -> str:
    first, *others = things
    return "\n\n".join((f"First picked up: {first}", *(f"Then: {other}" for other in others)))


def _clip(frames: list[Image.Image]) -> bytes:
    return video(frames, [_MILLISECONDS] * len(frames))


def _row(name: str, rooms: Rooms, episode: Episode, clip: bytes) -> Row:
    about = {"group": name, "rooms": f"{rooms[0]} x {rooms[1]}"}
    return {**about, "video": clip, "told": episode.told, **episode.asked}
