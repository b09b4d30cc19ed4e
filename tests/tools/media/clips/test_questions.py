"""How emoji are dealt over training, validation and test."""

import pytest

from tools.media.clips import questions
from tools.media.names import Emoji


def test_emoji_that_are_called_alike_are_never_parted() -> None:
    """A tenth is kept for validation and a tenth for test, with or without the person."""
    emoji = [
        Emoji(code=f"{n}", name=f"{who}thing {n}", tags=(), group="", base=f"{n}")
        for n in range(2000)
        for who in ("", "man: ", "woman: ")
    ]
    parts = [{questions.split_of(each) for each in emoji[at : at + 3]} for at in range(0, 6000, 3)]
    assert all(len(part) == 1 for part in parts)
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert sum(split in part for part in parts) / 2000 == pytest.approx(share, abs=0.03)
