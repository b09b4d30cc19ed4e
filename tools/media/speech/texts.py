"""What is spoken: words, numbers, commands, and what packages are for."""

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tools.packages import debian
from tools.packages.used import Packages

WORDS: Final = (
    *("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india"),
    *("juliet", "kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra"),
    *("tango", "uniform", "victor", "whiskey", "yankee", "zulu"),
    *("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    *("january", "february", "april", "june", "july", "august", "september", "october"),
    *("december", "today", "tomorrow", "yesterday", "hello", "goodbye", "extension", "location"),
    *("password", "transfer", "number", "family", "friends", "messages", "uppercase"),
    *("lowercase", "hours", "minutes", "seconds", "percent", "backslash", "semicolon"),
)
"""That the people say, too."""
MOST_NUMBER: Final = 9_999

_ONES: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

_HELD_OUT_OF: Final = 10
"""One of so many texts is never trained on."""
_FEWEST_WORDS, _MOST_WORDS = 2, 8
_SPOKEN: Final = re.compile(r"[a-z]{2,}(?: [a-z]{1,12})*")

_COMMANDS: Final = (
    "{switch} the {thing} in the {room}",
    "{switch} the {thing} in the {room} at {hour}",
    "set the {thing} in the {room} to {number} percent",
    "set a timer for {number} minutes",
    "wake me at {hour} on {day}",
    "remind me to {do} on {day}",
    "remind me to {do} in {number} hours",
    "send a message to {person}",
    "call {person} on {day}",
    "what is {number} plus {number}",
    "how far is it to {place}",
    "is it going to rain in {place} on {day}",
    "play some music in the {room}",
    "add {number} {food} to my list",
)
_FILLINGS: Final[Mapping[str, Sequence[str]]] = {
    "switch": ("turn on", "turn off", "check", "dim"),
    "thing": ("light", "heating", "fan", "radio", "lamp", "oven", "screen", "alarm"),
    "room": ("kitchen", "bedroom", "garage", "office", "hall", "garden", "cellar"),
    "hour": ("six", "seven", "eight", "nine", "ten", "noon", "midnight"),
    "number": (*_ONES[2:], *_TENS),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "do": ("water the plants", "pay the rent", "feed the cat", "buy bread", "read the paper"),
    "person": ("anna", "peter", "my brother", "the doctor", "our neighbour", "grandmother"),
    "place": ("london", "paris", "the station", "the airport", "the harbour", "new york"),
    "food": ("apples", "eggs", "bananas", "bottles of milk", "loaves of bread", "onions"),
}


def in_words(number: int) -> str:
    """A number up to `MOST_NUMBER` as it is read in America, without `and`."""
    assert 0 <= number <= MOST_NUMBER
    parts: list[str] = []
    for size, name in ((1000, " thousand"), (100, " hundred")):
        if number >= size:
            parts.append(_ONES[number // size] + name)
            number %= size
    if number >= 20:
        parts.append(_TENS[number // 10 - 2])
        number %= 10
        if number:
            parts.append(_ONES[number])
    elif number or not parts:
        parts.append(_ONES[number])
    return " ".join(parts)


def is_held_out(text: str) -> bool:
    """Whether a text is never trained on."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") % _HELD_OUT_OF == 0


def numbers(*, held_out: bool, seed: str) -> Iterator[int]:
    """Numbers without end, of one digit to four; of those with more than two some are held out."""
    chance = random.Random(f"{seed} numbers")
    while True:
        number = int(10 ** chance.uniform(0, 4)) - 1
        if number < 100 or is_held_out(in_words(number)) == held_out:
            yield number


def texts(synopses: Sequence[str], *, held_out: bool, seed: str) -> Iterator[str]:
    """Texts without end: a command, what a package is for, a number, and again."""
    chance = random.Random(f"{seed} texts")
    found = numbers(held_out=held_out, seed=seed)
    some = [text for text in synopses if is_held_out(text) == held_out]
    while True:
        while is_held_out(text := _command(chance)) != held_out:
            pass
        yield text
        if some:
            yield chance.choice(some)
        yield in_words(next(found))


def read_synopses(packages: Packages) -> list[str]:
    """What Debian's packages are for, in a line each, those of plain words.

    Raises:
        DataError: the lists cannot be had.
    """
    found: set[str] = set()
    for stanza in debian.stanzas(packages.debian_index()):
        told = stanza.get("Description-en", "").partition("\n")[0].lower()
        text = " ".join(re.sub(r"[,:;()]", " ", told).split())
        if _SPOKEN.fullmatch(text) and _FEWEST_WORDS <= len(text.split()) <= _MOST_WORDS:
            found.add(text)
    return sorted(found)


def _command(chance: random.Random) -> str:
    """Each gap is filled by itself."""
    pattern = chance.choice(_COMMANDS)
    return re.sub(r"\{(\w+)\}", lambda gap: chance.choice(_FILLINGS[gap[1]]), pattern)
