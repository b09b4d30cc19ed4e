"""Records: documents for a corpus, and what tasks ask (`configs/task/pictures`)."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from tools.media.clipart import Clip
from tools.media.names import Emoji
from tools.media.scenes import NUMBERS, PLACES, Scene
from train.errors import DataError

Row = Mapping[str, Any]

DOCUMENT: Final = pa.schema([("id", pa.string()), ("image", pa.binary()), ("text", pa.string())])
"""What `tools.corpus build` reads: a picture, and the text behind it."""
_OF_ALL: Final = [("group", pa.string()), ("vendor", pa.string()), ("picture", pa.binary())]
NAME: Final = pa.schema(
    [*_OF_ALL, ("name", pa.string()), ("choices", pa.list_(pa.string())), ("right", pa.int64())]
)
COUNT: Final = pa.schema([*_OF_ALL, ("thing", pa.string()), ("number", pa.int64())])
PLACE: Final = pa.schema(
    [*_OF_ALL, ("first", pa.string()), ("second", pa.string()), ("place", pa.int64())]
)

NUM_CHOICES: Final = 20
_VALIDATION_OF: Final = 10
"""One of so many drawings of those that are trained on is kept for validation."""


def is_validation(vendor: str, emoji: Emoji) -> bool:
    """Whether a vendor's drawing is kept for validation: with all its skin tones, or none."""
    digest = hashlib.sha256(f"{vendor} {emoji.base}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % _VALIDATION_OF == 0


def captioned(vendor: str, emoji: Iterable[Emoji], drawings: Mapping[str, bytes]) -> Iterator[Row]:
    """Documents of a vendor's drawings: the name behind the picture, and the tags behind that."""
    for each in emoji:
        yield {
            "id": f"{vendor}/{each.code}",
            "image": drawings[each.code],
            "text": _caption(each.name, each.tags),
        }


def clips(found: Iterable[Clip]) -> Iterator[Row]:
    """Documents of clip art, in the same form."""
    for clip in found:
        text = _caption(clip.title, clip.tags)
        yield {"id": f"openclipart/{clip.name}", "image": clip.picture, "text": text}


def told(scenes: Iterable[Scene], purpose: str) -> Iterator[Row]:
    """Documents of scenes: what is asked of them, with its answer."""
    for number, scene in enumerate(scenes):
        if scene.place is not None:
            text = f"The {scene.first} is {scene.place} the {scene.second}"
        else:
            text = f"Number of {scene.first}: {NUMBERS[scene.count - 1]}"
            if scene.others:
                text += f"\n\nNumber of {scene.second}: {NUMBERS[scene.others - 1]}"
        place = f"{scene.vendor}/{purpose}/{number}"
        yield {"id": place, "image": scene.picture, "text": text}


def named(
    vendor: str, emoji: Sequence[Emoji], drawings: Mapping[str, bytes], *, seed: int
) -> Iterator[Row]:
    """A drawing and twenty names, of which one is its own.

    Args:
        vendor: whose drawings they are.
        emoji: all that may be asked and offered; no two units among the twenty are alike.
        drawings: of those that are asked.
        seed: of what is drawn.

    Raises:
        DataError: there are not twenty names to offer.
    """
    if len({each.unit for each in emoji}) < NUM_CHOICES:
        raise DataError(f"there are not {NUM_CHOICES} emoji of different names to choose from")
    for each in emoji:
        if each.code not in drawings:
            continue
        chance = random.Random(f"{seed} {vendor} {each.code}")
        choices, units = [each.name], {each.unit}
        while len(choices) < NUM_CHOICES:
            other = chance.choice(emoji)
            if other.unit not in units:
                choices.append(other.name)
                units.add(other.unit)
        chance.shuffle(choices)
        yield {
            "group": each.unit,
            "vendor": vendor,
            "picture": drawings[each.code],
            "name": each.name,
            "choices": choices,
            "right": choices.index(each.name),
        }


def mixed(rows: Iterable[Row]) -> list[Row]:
    """Rows by the hash of their pictures, so that the first few of them are like all."""
    return sorted(rows, key=lambda row: hashlib.sha256(row["picture"]).digest())


def counted(scenes: Iterable[Scene]) -> Iterator[Row]:
    """How often something is shown, from 0 for once."""
    for scene in scenes:
        about = {"group": scene.first, "vendor": scene.vendor, "picture": scene.picture}
        yield {**about, "thing": scene.first, "number": scene.count - 1}


def placed(scenes: Iterable[Scene]) -> Iterator[Row]:
    """Where something is, as a number of `PLACES`."""
    for scene in scenes:
        assert scene.place is not None, "scenes of places tell the place"
        about = {"group": scene.first, "vendor": scene.vendor, "picture": scene.picture}
        named = {"first": scene.first, "second": scene.second}
        yield {**about, **named, "place": PLACES.index(scene.place)}


def _caption(name: str, tags: Sequence[str]) -> str:
    """Behind a space, as an answer stands that a task asks for: its first token is another else."""
    return f" {name}\n\n{', '.join(tags)}" if tags else f" {name}"
