"""Tasks of Debian's package lists: what each package is, in words that people wrote."""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tools.packages.debian import stanzas
from tools.packages.used import Packages
from tools.tasks.build import Row, split_of

SECTIONS: Final = (
    "admin", "database", "doc", "fonts", "games", "graphics", "mail", "net", "science", "sound",
    "video", "web",
)  # fmt: skip
"""Of Debian's sections, those that say what a package is about; not its language or its kind."""

_FIELDS: Final = ("Package", "Version", "Architecture", "Section", "Installed-Size")
_LEAST_WORDS: Final = 8
_MOST_WORDS: Final = 60
_CHOICES: Final = 4
_DRAWN: Final = 24
"""Among which are enough that differ."""


@dataclass(frozen=True, kw_only=True)
class _Package:
    """A package as the lists describe it.

    Attributes:
        source: the package that it is built from; packages of one source share much of their text.
        fields: of its stanza.
        synopsis: its description in a line.
        description: at length, in paragraphs.
    """

    source: str
    fields: dict[str, str]
    synopsis: str
    description: str


def sections(packages: Packages) -> Iterator[Row]:
    """The section of a package by its description."""
    for package in _packages(packages):
        section = package.fields["Section"].rpartition("/")[2]
        if section in SECTIONS:
            yield {"unit": package.source, "description": package.description, "section": section}


def synopses(packages: Packages) -> Iterator[Row]:
    """A package's description in a line."""
    for package in _packages(packages):
        if len(package.synopsis.split()) >= 3:
            yield {
                "unit": package.source,
                "description": package.description,
                "synopsis": package.synopsis,
            }


def matches(packages: Packages) -> Iterator[Row]:
    """Which line is the synopsis of a description; the others are those of its section."""
    alike: dict[tuple[str, str], list[_Package]] = defaultdict(list)
    for package in _packages(packages):
        alike[split_of(package.source), package.fields["Section"]].append(package)
    for found in alike.values():
        for package in found:
            chance = random.Random(package.fields["Package"])
            drawn = (chance.choice(found) for _ in range(_DRAWN))
            others = [other.synopsis for other in drawn if other.source != package.source]
            lines = [*dict.fromkeys([package.synopsis, *others])][:_CHOICES]
            if len(lines) == _CHOICES:
                chance.shuffle(lines)
                yield {
                    "unit": package.source,
                    "description": package.description,
                    "lines": lines,
                    "right": lines.index(package.synopsis),
                }


def fields(packages: Packages) -> Iterator[Row]:
    """A question about a field of a package's stanza; the answer stands there."""
    for package in _packages(packages):
        lines = [(name, package.fields.get(name, "")) for name in _FIELDS]
        if not all(value and len(value) < 60 for _, value in lines):
            continue
        chance = random.Random(package.fields["Package"])
        chance.shuffle(lines)
        name, value = chance.choice(lines)
        yield {
            "unit": package.source,
            "control": "\n".join(f"{name}: {value}" for name, value in lines),
            "field": name,
            "value": value,
        }


def dependencies(packages: Packages) -> Iterator[Row]:
    """Which package is among those that another depends on; what others need is drawn alike."""
    wanted = [(p, _depended(p)) for p in _packages(packages)]
    every = [name for _, names in wanted for name in names]
    for package, names in wanted:
        if not 2 <= len(names) <= 12:
            continue
        chance = random.Random(package.fields["Package"])
        asked = chance.choice(names)
        drawn = (chance.choice(every) for _ in range(_DRAWN))
        others = dict.fromkeys(name for name in drawn if name not in names)
        choices = [asked, *others][:_CHOICES]
        if len(choices) == _CHOICES:
            chance.shuffle(choices)
            yield {
                "unit": package.source,
                "depends": ", ".join(names),
                "packages": choices,
                "right": choices.index(asked),
            }


def _depended(package: _Package) -> list[str]:
    """Names that a package depends on, without versions and alternatives."""
    names = (
        part.split("|")[0].split("(")[0].split(":")[0].strip()
        for part in package.fields.get("Depends", "").split(",")
    )
    return [*dict.fromkeys(name for name in names if name)]


def _packages(packages: Packages) -> list[_Package]:
    """The packages that have a description of some length, each once."""
    return _read(packages.debian_index())


@cache
def _read(index: Path) -> list[_Package]:
    found: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    for stanza in stanzas(index):
        if "Description-en" in stanza:
            texts[stanza["Description-md5"]] = stanza["Description-en"]
        elif "Section" in stanza:
            found.setdefault(stanza["Package"], dict(stanza))
    several: list[_Package] = []
    for name, stanza in sorted(found.items()):
        synopsis, _, rest = texts.get(stanza.get("Description-md5", ""), "").partition("\n")
        description = _prose(rest)
        if synopsis and _LEAST_WORDS <= len(description.split()) <= _MOST_WORDS:
            source = stanza.get("Source", name).split(" ")[0]
            several.append(
                _Package(
                    source=source, fields=stanza, synopsis=synopsis.strip(), description=description
                )
            )
    return several


def _prose(lines: str) -> str:
    """The paragraphs of an extended description, a line each; a lone point parts them."""
    paragraphs = re.split(r"\n \.(?=\n|$)", f"\n{lines}")
    joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return "\n".join(paragraph for paragraph in joined if paragraph)
