"""What a scene is said to show is what its pixels show."""

import io
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.tools.media.making import WORDS, colour, drawing
from tools.media.names import Emoji
from tools.media.scenes import PLACES, Composer, things

CODES = [f"1F4{number:02X}" for number in range(len(WORDS))]
EMOJI = [
    Emoji(code=code, name=word, tags=(), group="animals & nature", base=code)
    for code, word in zip(CODES, WORDS, strict=True)
]
DRAWINGS = {each.code: drawing(number) for number, each in enumerate(EMOJI)}


@pytest.fixture
def composer() -> Composer:
    return Composer("google", EMOJI, DRAWINGS, seed=3)


def seen(picture: bytes, name: str) -> list[tuple[float, float]]:
    """Where something is shown: row and column of each middle."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    mask = (pixels == colour(WORDS.index(name))).all(axis=-1)
    labels, count = cast("tuple[Any, int]", ndimage.label(mask))
    return [*map(tuple, ndimage.center_of_mass(mask, labels, range(1, count + 1)))]


def test_as_many_are_seen_as_are_told(composer: Composer) -> None:
    scenes = [*composer.counted("train", 60)]
    assert {scene.count for scene in scenes} == {1, 2, 3, 4, 5, 6}
    assert {scene.others for scene in scenes} == {0, 1, 2, 3}
    for scene in scenes:
        assert len(seen(scene.picture, scene.first)) == scene.count
        assert len(seen(scene.picture, scene.second)) == scene.others


def test_things_are_where_they_are_told(composer: Composer) -> None:
    scenes = [*composer.placed("train", 60)]
    assert {scene.place for scene in scenes} == {*PLACES}
    for scene in scenes:
        [(row, column)], [(other_row, other_column)] = (
            seen(scene.picture, name) for name in (scene.first, scene.second)
        )
        along, across = column - other_column, row - other_row
        if scene.place in ("above", "below"):
            along, across = across, along
        assert (along < 0) == (scene.place in ("left of", "above"))
        # In one line, so that nothing else is true besides.
        assert abs(along) > 2 * abs(across)


def test_a_scene_is_the_same_whatever_else_is_made(composer: Composer) -> None:
    few, many = ([*composer.counted("train", count)] for count in (3, 9))
    assert few == many[:3]
    other = Composer("google", EMOJI, DRAWINGS, seed=4)
    assert few != [*other.counted("train", 3)]
    assert few != [*composer.counted("validation", 3)]


def test_what_scenes_show_has_a_short_name_and_is_drawn_by_all() -> None:
    more = [
        Emoji(code="A", name="eye in speech bubble", tags=(), group="objects", base="A"),
        Emoji(code="B", name="man bowing", tags=(), group="people & body", base="B"),
        Emoji(code="C", name="2nd medal", tags=(), group="objects", base="C"),
    ]
    drawn = dict.fromkeys([*DRAWINGS, "A", "B", "C"], b"")
    lacking = {code: b"" for code in drawn if code != EMOJI[0].code}
    assert things([*EMOJI, *more], [drawn, lacking]) == EMOJI[1:]
