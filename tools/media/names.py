"""What emoji are called, from emojibase-data."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.packages import npm
from tools.packages.used import Packages

PACKAGE: Final = "emojibase-data"
SHA256: Final = "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"
_VERSION: Final = "17.0.0"
_PERSONS: Final = re.compile(r"\b(?:man|woman|men|women|person|people|boy|girl)\b:? ?")
_PRESENTATION: Final = "-FE0F"


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """An emoji.

    Attributes:
        code: its code points, as `code_of` writes them.
        name: what it is called in English.
        tags: words that people seek it with.
        group: such as `animals & nature`.
        base: code of the emoji without skin tones.
    """

    code: str
    name: str
    tags: tuple[str, ...]
    group: str
    base: str

    @property
    def unit(self) -> str:
        """Its name without the person: who runs is named alike, man or woman."""
        return without_person(self.name)


def without_person(name: str) -> str:
    """A name without who it shows, or as it is where nothing else would be left."""
    return _PERSONS.sub("", name).strip() or name


def code_of(text: str) -> str:
    """The code points of a file's name in one writing: vendors differ in case and variation."""
    return text.upper().replace(_PRESENTATION, "")


def read_names(packages: Packages) -> list[Emoji]:
    """All emoji that have a place among the others, those with skin tones behind their base.

    Raises:
        DataError: the package cannot be had, or is not what it was.
    """
    package = packages.npm(PACKAGE, _VERSION, licence="MIT", sha256=SHA256)
    groups = groups_of(package)
    found: list[Emoji] = []
    for each in json.loads(npm.content(package, "en/data.json")):
        group = groups.get(each.get("group"))
        if group in (None, "components"):
            continue  # letters of flags, tones and hair: what others are made of
        base = code_of(each["hexcode"])
        tags = tuple(each.get("tags", ()))
        variants: Sequence[Any] = (each, *each.get("skins", ()))
        found += [
            Emoji(
                code=code_of(one["hexcode"]), name=one["label"], tags=tags, group=group, base=base
            )
            for one in variants
        ]
    return found


def groups_of(package: Path) -> dict[int | None, str]:
    """The names of the groups by their numbers."""
    told = json.loads(npm.content(package, "en/messages.json"))["groups"]
    return {group["order"]: group["message"] for group in told}
