"""Scenes composed of emoji, of which it is known exactly what they show."""

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from PIL import Image

from tools.media.names import Emoji

NUMBERS: Final = ("one", "two", "three", "four", "five", "six")
PLACES: Final = ("left of", "right of", "above", "below")
SIDE_PIXELS: Final = 128
_CELLS: Final = 3
_CELL_PIXELS: Final = SIDE_PIXELS // _CELLS
_SIZES: Final = (30, 40)
"""Of what is shown; a pixel of ground is left on each side."""
_LIGHTEST: Final = (190, 255)
_MOST_OTHERS: Final = 3
_GROUPS: Final = ("animals & nature", "food & drink", "objects")
_MOST_WORDS: Final = 2

Cell = tuple[int, int]
"""Column and row, from the left and from above."""
Place = Literal["left of", "right of", "above", "below"]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture and what it shows.

    Attributes:
        vendor: whose drawings they are.
        first: name of a thing.
        second: name of another.
        count: times that `first` is shown.
        others: times that `second` is shown.
        place: where `first` is, seen from `second`; None where either is shown more than once.
        picture: PNG.
    """

    vendor: str
    first: str
    second: str
    count: int
    others: int
    place: Place | None
    picture: bytes


def things(emoji: Sequence[Emoji], drawn: Sequence[Mapping[str, bytes]]) -> list[Emoji]:
    """Emoji that a scene may show: things with short names, which all vendors draw."""
    return [
        each
        for each in emoji
        if each.group in _GROUPS
        and each.code == each.base
        and len(each.name.split()) <= _MOST_WORDS
        and each.name.replace(" ", "").isalpha()
        and all(each.code in drawings for drawings in drawn)
    ]


class Composer:
    """Composes scenes of one vendor's drawings.

    Args:
        vendor: its name.
        shown: things to show.
        drawings: picture files by code.
        seed: of what is drawn; scene `number` of a purpose is the same whatever else is made.
    """

    def __init__(
        self, vendor: str, shown: Sequence[Emoji], drawings: Mapping[str, bytes], *, seed: int
    ):
        self._vendor = vendor
        self._shown = shown
        self._seed = seed
        self._drawings = {each.code: _opened(drawings[each.code]) for each in shown}

    def counted(self, purpose: str, count: int) -> Iterator[Scene]:
        """Scenes in which something is shown one to six times, beside up to three of another."""
        for number in range(count):
            chance = self._chance("count", purpose, number)
            first, second = chance.sample(self._shown, 2)
            times = chance.randint(1, len(NUMBERS))
            others = chance.randint(0, min(_MOST_OTHERS, _CELLS**2 - times))
            cells = chance.sample(_all_cells(), times + others)
            shown = [first] * times + [second] * others
            yield Scene(
                vendor=self._vendor,
                first=first.name,
                second=second.name,
                count=times,
                others=others,
                place=None,
                picture=self._picture(list(zip(shown, cells, strict=True)), chance),
            )

    def placed(self, purpose: str, count: int) -> Iterator[Scene]:
        """Scenes of two things in one row or column, and perhaps of a third elsewhere."""
        for number in range(count):
            chance = self._chance("place", purpose, number)
            first, second, third = chance.sample(self._shown, 3)
            place: Place = chance.choice(PLACES)
            line = chance.randrange(_CELLS)
            low, high = sorted(chance.sample(range(_CELLS), 2))
            at, other = (low, high) if place in ("left of", "above") else (high, low)
            is_row = place in ("left of", "right of")
            cells = [(at, line), (other, line)] if is_row else [(line, at), (line, other)]
            shown = [*zip((first, second), cells, strict=True)]
            if chance.random() < 0.5:
                free = [cell for cell in _all_cells() if cell not in cells]
                shown.append((third, chance.choice(free)))
            yield Scene(
                vendor=self._vendor,
                first=first.name,
                second=second.name,
                count=1,
                others=1,
                place=place,
                picture=self._picture(shown, chance),
            )

    def _chance(self, *purpose: object) -> random.Random:
        return random.Random(" ".join(map(str, (self._seed, self._vendor, *purpose))))

    def _picture(self, shown: Sequence[tuple[Emoji, Cell]], chance: random.Random) -> bytes:
        ground = tuple(chance.randint(*_LIGHTEST) for _ in range(3))
        picture = Image.new("RGB", (SIDE_PIXELS, SIDE_PIXELS), ground)
        for each, (column, row) in shown:
            side = chance.randint(*_SIZES)
            drawing = self._drawings[each.code].resize((side, side), Image.Resampling.BOX)
            left, top = (
                cell * _CELL_PIXELS + chance.randint(1, _CELL_PIXELS - side - 1)
                for cell in (column, row)
            )
            picture.paste(drawing, (left, top), drawing)
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()


def _all_cells() -> list[Cell]:
    return [(column, row) for row in range(_CELLS) for column in range(_CELLS)]


def _opened(content: bytes) -> Image.Image:
    """A drawing with transparency, in a square."""
    with Image.open(io.BytesIO(content)) as image:
        drawing = image.convert("RGBA")
    side = max(drawing.size)
    square = Image.new("RGBA", (side, side))
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return square
