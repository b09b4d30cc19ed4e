"""Tasks of Debian's packages to read: fortunes and manual pages."""

import gzip
import re
from collections.abc import Iterator
from typing import Final

from tools.packages.debian import files
from tools.packages.used import Packages
from tools.tasks.build import Row

FORTUNES: Final = (
    *("art", "computers", "definitions", "education", "food", "humorists", "knghtbrd", "law"),
    *("linux", "men-women", "people", "perl", "politics", "science", "songs-poems", "startrek"),
    *("wisdom", "work", "zippy"),
)  # fmt: skip
"""Files of the package that are about something, and have some hundred texts."""

LANGUAGES: Final = {
    "manpages": "English",
    "manpages-de": "German",
    "manpages-es": "Spanish",
    "manpages-fr": "French",
    "manpages-it": "Italian",
    "manpages-nl": "Dutch",
    "manpages-pl": "Polish",
    "manpages-pt-br": "Portuguese",
    "manpages-ro": "Romanian",
}

_PAGES: Final = "usr/share/man/"
_LEAST_WORDS: Final = 6
_MOST_WORDS: Final = 30
_PASSAGES_A_PAGE: Final = 6
_ESCAPE: Final = re.compile(r"\\(?:f(?:\[[^]]*\]|\(..|.)|\*?\[[^]]*\]|\((?:..)|[&,/|^:%])")


def fortunes(packages: Packages) -> Iterator[Row]:
    """The file that a fortune is from."""
    place = "usr/share/games/fortunes/"
    for name in ("fortunes", "fortunes-min"):
        package = packages.debian(name)
        for path, content in files(package, wanted=lambda path: path.startswith(place)):
            kind = path.removeprefix(place)
            if kind in FORTUNES:
                for fortune in content.decode(errors="replace").split("\n%\n"):
                    text = " ".join(fortune.split())
                    if _LEAST_WORDS <= len(text.split()) <= 2 * _MOST_WORDS:
                        yield {"unit": text, "text": text, "file": kind}


def languages(packages: Packages) -> Iterator[Row]:
    """The language of a passage of a manual page; a page is in one split in all languages."""
    for name, language in LANGUAGES.items():
        package = packages.debian(name)
        for path, content in files(package, wanted=lambda path: path.startswith(_PAGES)):
            page = path.rpartition("/")[2].removesuffix(".gz")
            if not path.endswith(".gz"):
                continue
            passages = _passages(gzip.decompress(content).decode(errors="replace"))
            for passage in passages[:_PASSAGES_A_PAGE]:
                yield {"unit": page, "passage": passage, "language": language}


def _passages(roff: str) -> list[str]:
    """The running text of a page, a paragraph each, without its marks."""
    found: list[str] = []
    lines: list[str] = []
    for line in [*roff.splitlines(), ".PP"]:
        if line.startswith((".", "'")):
            text = _ESCAPE.sub("", " ".join(lines)).replace("\\-", "-").replace("\\ ", " ")
            text = " ".join(text.split())
            if _LEAST_WORDS <= len(text.split()) <= _MOST_WORDS and "\\" not in text:
                found.append(text)
            lines = []
        else:
            lines.append(line)
    return found
