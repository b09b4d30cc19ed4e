"""Names to choose from, and what is kept for validation."""

import pytest

from tests.tools.media.making import WORDS
from tools.media.names import Emoji, code_of
from tools.media.questions import captioned, is_validation, named
from train.errors import DataError
from train.tasks.example import Choice


def emoji(name: str, code: str, base: str | None = None) -> Emoji:
    return Emoji(code=code, name=name, tags=(), group="animals & nature", base=base or code)


MANY = [emoji(word, f"{number}") for number, word in enumerate(WORDS)]


def test_twenty_names_of_which_one_is_right() -> None:
    drawings = {each.code: each.name.encode() for each in MANY[:9]}
    asked = [*named("google", MANY, drawings, seed=0)]
    assert [row["name"] for row in asked] == WORDS[:9]
    for row in asked:
        assert len({*row["choices"]}) == len(row["choices"]) == 20
        assert row["choices"][row["right"]] == row["name"] == row["picture"].decode()
    assert len({row["right"] for row in asked}) > 3
    assert asked == [*named("google", MANY, drawings, seed=0)]
    assert asked[3:4] == [*named("google", MANY, {"3": drawings["3"]}, seed=0)]


def test_a_caption_begins_as_the_answer_does_that_a_task_asks_for() -> None:
    """Else what a model has learned of pictures is another first token than the one that counts."""
    tagged = Emoji(code="1", name="cat", tags=("kitten", "pet"), group="x", base="1")
    for each, rest in ((tagged, "\n\nkitten, pet"), (emoji("cat", "1"), "")):
        [row] = captioned("google", [each], {"1": b"x"})
        [answer] = Choice(text="cat").segments
        assert row["text"] == answer.text + rest


def test_who_is_shown_tells_no_two_choices_apart() -> None:
    people = [emoji(f"{who} bowing", who) for who in ("man", "woman", "person")]
    for row in named("google", [*people, *MANY], {"man": b"x"}, seed=0):
        assert sum("bowing" in choice for choice in row["choices"]) == 1


def test_too_few_names() -> None:
    with pytest.raises(DataError, match="there are not 20 emoji of different names"):
        next(iter(named("google", MANY[:19], {"1": b"x"}, seed=0)))


def test_skin_tones_are_kept_with_their_base() -> None:
    kept = [number for number in range(400) if is_validation("google", emoji("x", f"{number}"))]
    assert 20 < len(kept) < 60
    assert all(is_validation("google", emoji("x: light", "y", f"{number}")) for number in kept)
    other = [number for number in range(400) if is_validation("fluent", emoji("x", f"{number}"))]
    assert kept != other


def test_files_are_called_by_one_code() -> None:
    assert code_of("0023-fe0f-20e3") == code_of("0023-FE0F-20E3") == code_of("0023-20E3")
