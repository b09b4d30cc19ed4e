"""Tasks of emoji: names and groups by the words that people seek them with."""

import json
from collections.abc import Iterator
from typing import Any

from tools.media.names import groups_of, without_person
from tools.packages import npm
from tools.packages.used import Packages
from tools.tasks.build import Row


def names(packages: Packages) -> Iterator[Row]:
    """The name of an emoji by its tags, in the order in which the package gives them."""
    for emoji in _emoji(packages):
        yield {"unit": _unit(emoji), "tags": emoji["tags"], "name": emoji["label"]}


def groups(packages: Packages) -> Iterator[Row]:
    """The group of an emoji by its name and tags."""
    for emoji in _emoji(packages):
        yield {
            "unit": _unit(emoji),
            "name": emoji["label"],
            "tags": emoji["tags"],
            "group": emoji["group"],
        }


def _emoji(packages: Packages) -> list[dict[str, Any]]:
    """Those with tags, but flags, whose names are facts, and what others are made of."""
    package = packages.npm("emojibase-data", "17.0.0", licence="MIT")
    groups = groups_of(package)
    return [
        {**emoji, "group": groups[emoji["group"]]}
        for emoji in json.loads(npm.content(package, "en/data.json"))
        if emoji.get("tags") and groups.get(emoji.get("group")) not in (None, "flags", "components")
    ]


def _unit(emoji: dict[str, Any]) -> str:
    return without_person(emoji["label"])
