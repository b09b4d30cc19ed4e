"""Small packages of emoji in the real form of the real ones, and pictures whose colours tell."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tools.tasks.making import keep_npm
from tools.media import build, drawings, names
from tools.packages.kept import sha256

WORDS = [
    *("ant", "bat", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lion"),
    *("mole", "newt", "owl", "pig", "quail", "ram", "seal", "toad", "urchin", "viper", "yak"),
]
ROUND_NAME = "man bowing"
"""Of an emoji with one skin tone besides."""
_PEOPLE, _ANIMALS, _COMPONENTS = 1, 3, 2
_FIRST_CODE = 0x1F400


def colour(number: int, vendor: int = 0) -> tuple[int, int, int]:
    """Of what is shown: all differ, and none is as light as a scene's ground."""
    return (7 * number, 20 + 30 * vendor, 100)


def drawing(number: int, vendor: int = 0, *, kind: str = "PNG", side: int = 12) -> bytes:
    """A square of one colour."""
    content = io.BytesIO()
    picture = Image.new("RGBA", (side, side), (*colour(number, vendor), 255))
    picture.save(content, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return content.getvalue()


def keep_emoji(
    cache: Path, monkeypatch: pytest.MonkeyPatch, *, lacking: Sequence[str] = ("yak",)
) -> Path:
    """Keep small packages as downloads leave them, and know them by their own hashes.

    Args:
        cache: that keeps them.
        monkeypatch: of the test.
        lacking: names of what Fluent has not drawn.
    """
    groups = {_PEOPLE: "people & body", _COMPONENTS: "components", _ANIMALS: "animals & nature"}
    told: list[dict[str, Any]] = [
        {
            "label": word,
            "hexcode": f"{_FIRST_CODE + number:X}-FE0F",
            "tags": [f"{word} tag", "animal"],
            "group": _ANIMALS,
        }
        for number, word in enumerate(WORDS)
    ]
    tone = {"label": f"{ROUND_NAME}: light skin tone", "hexcode": "1F640-1F3FB", "tone": 1}
    told += [
        {"label": ROUND_NAME, "hexcode": "1F640", "group": _PEOPLE, "skins": [tone]},
        {"label": "light skin tone", "hexcode": "1F3FB", "group": _COMPONENTS},
        {"label": "regional indicator A", "hexcode": "1F1E6"},
    ]
    messages = {"groups": [{"order": key, "message": text} for key, text in groups.items()]}
    package = keep_npm(
        cache,
        names.PACKAGE,
        "17.0.0",
        {"en/data.json": json.dumps(told), "en/messages.json": json.dumps(messages)},
    )
    monkeypatch.setattr(names, "SHA256", sha256(package))
    codes = {str(each["label"]): str(each["hexcode"]) for each in (*told, tone)}
    known = tuple(
        replace(vendor, sha256=sha256(_keep_vendor(cache, vendor, place, codes, lacking)))
        for place, vendor in enumerate(drawings.VENDORS)
    )
    monkeypatch.setattr(build, "VENDORS", known)
    return cache


def _keep_vendor(
    cache: Path, vendor: drawings.Vendor, place: int, codes: dict[str, str], lacking: Sequence[str]
) -> Path:
    """A vendor's package; its files are called and made as the vendor does."""
    files: dict[str, str | bytes] = {name: f"Terms of {vendor.name}." for name in vendor.told_in}
    for number, (name, code) in enumerate(codes.items()):
        if vendor.name in ("openmoji", "fluent_flat"):
            red, green, blue = colour(number, place)
            files[f"{vendor.below}/{code}.svg"] = (
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
                f'<rect width="72" height="72" fill="rgb({red},{green},{blue})"/></svg>'
            )
        elif vendor.name == "fluent":
            if name not in lacking:
                content = drawing(number, place, kind="WEBP", side=20)
                files[f"{vendor.below}/{code.lower()}.webp"] = content
        else:
            files[f"{vendor.below}/{code.lower()}.png"] = drawing(number, place)
    files[f"{vendor.below}/readme.txt"] = "no drawing"
    return keep_npm(cache, vendor.package, vendor.version, files)
