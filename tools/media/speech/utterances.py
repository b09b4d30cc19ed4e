"""Records of speech: who said what, and what is asked of it (`configs/task/speech`)."""

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from tools.media.speech.programs import Programs, Voice
from tools.media.speech.sounds import RATE, encoded, trimmed
from tools.media.speech.texts import MOST_NUMBER, WORDS
from train.data.spans.sound import read_samples

Row = Mapping[str, Any]

DOCUMENT: Final = pa.schema([("id", pa.string()), ("audio", pa.binary()), ("text", pa.string())])
"""What `tools.corpus build` reads: a sound, and the text behind it."""
_OF_ALL: Final = [
    *(("group", pa.string()), ("engine", pa.string()), ("voice", pa.string())),
    *(("sound", pa.binary()), ("text", pa.string())),
]
_CHOICES: Final = [("choices", pa.list_(pa.string())), ("right", pa.int64())]
TEXT: Final = pa.schema(_OF_ALL)
WORD: Final = pa.schema([*_OF_ALL, *_CHOICES])
NUMBER: Final = pa.schema([*_OF_ALL, ("number", pa.string()), *_CHOICES])

NUM_WORDS: Final = 20
"""To choose from."""
NUM_NUMBERS: Final = 10
_REPORT_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A sound and what is said in it.

    Attributes:
        voice: whose.
        text: words in lower case.
        sound: FLAC.
    """

    voice: Voice
    text: str
    sound: bytes


def spoken(
    programs: Programs,
    voices: Sequence[Voice],
    texts: Iterable[str],
    *,
    name: str,
    seed: int,
    count: int,
    report: Callable[[str], None],
) -> Iterator[Utterance]:
    """Texts, each spoken by some voice at some pace and pitch.

    Args:
        programs: speak.
        voices: of whom each text gets one.
        texts: what is spoken.
        name: of what is made, which makes draws and reports its own.
        seed: of what is drawn.
        count: how many of the texts.
        report: told every ten seconds how many are spoken.
    """
    chance = random.Random(f"{seed} {name}")
    told = time.monotonic()
    for number, text in enumerate(texts):
        if number == count:
            return
        voice = chance.choice(voices)
        said = programs.speak(voice, text, pace=chance.random(), pitch=chance.random())
        sound = encoded(trimmed(read_samples(said, rate=RATE)))
        yield Utterance(voice=voice, text=text, sound=sound)
        if time.monotonic() - told > _REPORT_SECONDS:
            told = time.monotonic()
            report(f"{name}: {number + 1:,} of {count:,} spoken")


def mixed(utterances: Iterable[Utterance]) -> list[Utterance]:
    """By the hash of their sounds, so that the first few of them are like all."""
    return sorted(utterances, key=lambda each: hashlib.sha256(each.sound).digest())


def transcribed(utterances: Iterable[Utterance]) -> Iterator[Row]:
    """What was said?"""
    for each in utterances:
        yield _about(each)


def words_asked(utterances: Iterable[Utterance], *, seed: str) -> Iterator[Row]:
    """Which of twenty words was spoken?"""
    chance = random.Random(f"{seed} choices")
    for each in utterances:
        others = [word for word in WORDS if word != each.text]
        yield _about(each) | _asked(each.text, chance.sample(others, NUM_WORDS - 1), chance)


def numbers_asked(
    utterances: Iterable[Utterance], numbers: Iterable[int], *, seed: str
) -> Iterator[Row]:
    """Which of ten numbers was spoken? The others are of as many digits."""
    chance = random.Random(f"{seed} choices")
    for each, number in zip(utterances, numbers, strict=False):
        least = 10 ** (len(str(number)) - 1) if number > 9 else 0
        most = min(MOST_NUMBER, 10 ** len(str(number)) - 1)
        alike = [other for other in _alike(number) if least <= other <= most]
        others = alike if len(alike) < NUM_NUMBERS else chance.sample(alike, NUM_NUMBERS - 1)
        row = _about(each) | {"number": str(number)}
        yield row | _asked(str(number), [str(other) for other in others], chance)


def _alike(number: int) -> list[int]:
    """Numbers of as many digits of which one is another."""
    digits = str(number)
    found: set[int] = set()
    for place in range(len(digits)):
        for digit in "0123456789":
            found.add(int(digits[:place] + digit + digits[place + 1 :]))
    return sorted(found - {number})


def documents(
    rows: Iterable[Row], *, name: str, before: str = "", of: str = "text"
) -> Iterator[Row]:
    """Documents of records: the sound, and what is to be said of it.

    Args:
        rows: of a task.
        name: what their ids begin with.
        before: what stands before it; a space at least, as before a task's answer.
        of: the column.
    """
    for number, row in enumerate(rows):
        yield {"id": f"{name}/{number}", "audio": row["sound"], "text": before + row[of]}


def _about(each: Utterance) -> dict[str, Any]:
    return {
        "group": each.text,
        "engine": each.voice.engine,
        "voice": each.voice.name,
        "sound": each.sound,
        "text": each.text,
    }


def _asked(right: str, others: Sequence[str], chance: random.Random) -> dict[str, Any]:
    choices = [right, *others]
    chance.shuffle(choices)
    return {"choices": choices, "right": choices.index(right)}
