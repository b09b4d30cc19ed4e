"""Records of videos: documents for a corpus, and what tasks ask (`configs/task/clips`)."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import pyarrow as pa

from tools.media.clips.animations import Animation
from tools.media.clips.composing import one_behind_the_other, one_frame, whole
from tools.media.names import Emoji
from tools.media.questions import NUM_CHOICES
from train.errors import DataError

Row = Mapping[str, Any]
Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")

DOCUMENT: Final = pa.schema([("id", pa.string()), ("video", pa.binary()), ("text", pa.string())])
"""What `tools.corpus build` reads: a video, and the text behind it."""
_OF_ALL: Final = [("group", pa.string()), ("video", pa.binary())]
NAME: Final = pa.schema(
    [*_OF_ALL, ("name", pa.string()), ("choices", pa.list_(pa.string())), ("right", pa.int64())]
)
ORDER: Final = pa.schema(
    [*_OF_ALL, ("one", pa.string()), ("other", pa.string()), ("right", pa.int64())]
)
_TENTHS: Final[Mapping[int, Split]] = {0: "validation", 1: "test"}
_FRAMES: Final = 8
"""Of each of the two in a clip of an order."""


def split_of(emoji: Emoji) -> Split:
    """Where an emoji belongs, by its unit: nothing that is asked in a test was trained on."""
    digest = hashlib.sha256(f"clips {emoji.unit}".encode()).digest()
    return _TENTHS.get(int.from_bytes(digest[:4], "big") % 10, "train")


def captioned(emoji: Sequence[Emoji], animations: Mapping[str, Animation]) -> Iterator[Row]:
    """Documents of animations: the name behind the video, and the tags behind that."""
    for each in emoji:
        tags = f"\n\n{', '.join(each.tags)}" if each.tags else ""
        yield {
            "id": f"animated/{each.code}",
            "video": whole(animations[each.code]),
            "text": f"{each.name}{tags}",
        }


def named(
    emoji: Sequence[Emoji], animations: Mapping[str, Animation], *, seed: int
) -> Iterator[Row]:
    """An animation and twenty names of its split, of which one is its own.

    Raises:
        DataError: there are not twenty names to offer.
    """
    num_names = len({each.unit for each in emoji})
    if num_names < 2:
        raise DataError("there are not two animated emoji of different names to choose from")
    for each in emoji:
        chance = random.Random(f"{seed} name {each.code}")
        choices, units = [each.name], {each.unit}
        while len(choices) < min(NUM_CHOICES, num_names):
            other = chance.choice(emoji)
            if other.unit not in units:
                choices.append(other.name)
                units.add(other.unit)
        chance.shuffle(choices)
        yield {
            "group": each.unit,
            "video": whole(animations[each.code]),
            "name": each.name,
            "choices": choices,
            "right": choices.index(each.name),
        }


def pairs(
    emoji: Sequence[Emoji], count: int, *, split: str, seed: int
) -> Iterator[tuple[Emoji, Emoji, bool]]:
    """Two emoji each that are called differently, and whether the second is seen first.

    Both orders of each pair come, one behind the other, so that nothing but time tells them apart.
    """
    if len({each.unit for each in emoji}) < 2:
        raise DataError("there are not two animated emoji of different names to choose from")
    chance = random.Random(f"{seed} order {split}")
    for _ in range((count + 1) // 2):
        one, other = chance.sample(emoji, 2)
        while one.unit == other.unit:
            one, other = chance.sample(emoji, 2)
        turned = [False, True]
        chance.shuffle(turned)
        for is_turned in turned:
            yield one, other, is_turned


def ordered(
    drawn: Iterator[tuple[Emoji, Emoji, bool]], animations: Mapping[str, Animation]
) -> Iterator[Row]:
    """Clips of two animations, and which of them comes first, 0 or 1."""
    for one, other, is_turned in drawn:
        first, second = (other, one) if is_turned else (one, other)
        yield _asked(one, other, is_turned) | {
            "video": one_behind_the_other(
                animations[first.code], animations[second.code], frames=_FRAMES
            )
        }


def ordered_by_one_frame(
    drawn: Iterator[tuple[Emoji, Emoji, bool]], animations: Mapping[str, Animation], *, seed: int
) -> Iterator[Row]:
    """The same questions about one frame of the clip, drawn among all: the control."""
    for number, (one, other, is_turned) in enumerate(drawn):
        # The same frame for both orders: it has nothing to tell.
        chance = random.Random(f"{seed} frame {number // 2} {one.code} {other.code}")
        shown = chance.choice([one, other])
        yield _asked(one, other, is_turned) | {
            "video": one_frame(
                animations[shown.code], frames=_FRAMES, number=chance.randrange(_FRAMES)
            )
        }


def told(rows: Iterator[Row]) -> Iterator[Row]:
    """Documents of clips of an order: which comes first, and then the other."""
    for number, row in enumerate(rows):
        names = row["one"], row["other"]
        first, second = names if row["right"] == 0 else names[::-1]
        text = f"First comes {first}\n\nThen comes {second}"
        yield {"id": f"order/{number}", "video": row["video"], "text": text}


def _asked(one: Emoji, other: Emoji, is_turned: bool) -> dict[str, Any]:
    return {
        "group": one.unit,
        "one": one.name,
        "other": other.name,
        "right": int(is_turned),
    }
