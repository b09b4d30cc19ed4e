"""What people said, in words."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.tools.media.speech.making import keep_debian, keep_speech
from tests.tools.tasks.making import packages
from tools.media.speech.people import SOUNDS, TEXTS, People, said_of
from tools.media.speech.sounds import trimmed
from train.errors import DataError


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("Activated.", "activated"),
        ("I'm sorry, that's not it!", "i'm sorry that's not it"),
        ("Call-Forward on No Answer.", "call forward on no answer"),
        ("... letters of your party's first name.", "letters of your party's first name"),
        ("Press 1 to lock, 42 to go on", "press one to lock forty two to go on"),
        ("dash [-]", None),
        ("press * to pause, # to go on", None),
        ("<beep ascending>", None),
        ("3D audio", None),
        ("", None),
    ],
)
def test_words_of_a_prompt(told: str, said: str | None) -> None:
    assert said_of(told) == said


def test_prompts_and_numbers(tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    people = People(packages(keep_speech(tmp_path)), left_out)
    texts = {prompt.name: prompt.text for prompt in people.prompts}
    assert texts["vm-press"] == "press one then after twelve seconds hang up"
    assert texts["phonetic/a_p"] == "alpha"
    assert {*texts}.isdisjoint({"beep", "letters/at"})
    assert left_out == {"prompts that are no words": 2}
    by_name = {prompt.name: prompt.samples for prompt in people.prompts}
    said = people.number(203)
    assert said is not None
    parts = [by_name[f"digits/{part}"] for part in ("2", "hundred", "3")]
    assert np.array_equal(said, np.concatenate(parts))
    assert people.number(21) is None, "twenty was never recorded"


def test_a_sound_is_what_was_recorded(tmp_path: Path) -> None:
    """The tone of each prompt, without the silence around it."""
    people = People(packages(keep_speech(tmp_path)), Counter())
    for prompt in people.prompts[:4]:
        assert 3200 <= len(prompt.samples) <= 3200 + 1700
    [zero] = [prompt for prompt in people.prompts if prompt.name == "digits/0"]
    spectrum = np.abs(np.fft.rfft(zero.samples))
    assert np.argmax(spectrum) * 16_000 / len(zero.samples) == pytest.approx(300, abs=5)


def test_silence_stays(tmp_path: Path) -> None:
    assert np.array_equal(trimmed(np.zeros(5, dtype=np.float32)), np.zeros(5, dtype=np.float32))


def test_a_package_without_sounds_is_named(tmp_path: Path) -> None:
    keep_speech(tmp_path / "whole")
    keep_debian(tmp_path, SOUNDS, {"usr/share/readme": b""})
    (tmp_path / "whole" / TEXTS).rename(tmp_path / TEXTS)
    with pytest.raises(DataError, match="has no prompt with a text; delete it, and build again"):
        People(packages(tmp_path), Counter())
