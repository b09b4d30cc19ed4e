"""What is spoken."""

from itertools import islice
from pathlib import Path

import pytest

from tests.tools.tasks.making import keep_index, packages
from tools.media.speech.texts import in_words, is_held_out, numbers, read_synopses, texts


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (7, "seven"),
        (19, "nineteen"),
        (20, "twenty"),
        (45, "forty five"),
        (100, "one hundred"),
        (313, "three hundred thirteen"),
        (2000, "two thousand"),
        (9_060, "nine thousand sixty"),
        (4_321, "four thousand three hundred twenty one"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert in_words(number) == words


def test_all_numbers_differ() -> None:
    assert len({in_words(number) for number in range(10_000)}) == 10_000


def test_what_is_held_out_is_not_trained_on() -> None:
    trained = {*islice(numbers(held_out=False, seed="a"), 2000)}
    others = {*islice(numbers(held_out=True, seed="b"), 500)}
    assert all(number < 100 for number in trained & others)
    assert {len(str(number)) for number in trained} == {1, 2, 3, 4}
    synopses = [f"a tool {word}" for word in ("to see", "to hear", "for you", "for me", "and more")]
    for held_out in (False, True):
        for text in islice(texts(synopses, held_out=held_out, seed="a"), 300):
            is_short = text in {in_words(number) for number in range(100)}
            assert is_short or is_held_out(text) == held_out
            assert "{" not in text


def test_synopses_are_plain_words(tmp_path: Path) -> None:
    told = ("arbitrary precision calculator", "C library (runtime)", "tools for X11", "toy")
    keep_index(
        tmp_path,
        "".join(f"Package: p{n}\nDescription-en: {t}\n More.\n\n" for n, t in enumerate(told)),
    )
    assert read_synopses(packages(tmp_path)) == ["arbitrary precision calculator"]
