"""The commands and configurations that a page of documentation shows."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
_INLINE = re.compile(r"(?<!`)`((?:python -m|make|sbatch|deepspeed|\.venv/bin/)\s[^`]+)`")


@dataclass(frozen=True)
class Command:
    """What a reader would type.

    Attributes:
        line: of the page, where it begins.
        words: as a shell splits it, without comments.
        is_whole: whether it stands in a block of its own; what stands in a sentence may leave out
            what it takes.
    """

    line: int
    words: tuple[str, ...]
    is_whole: bool

    def __str__(self) -> str:
        return " ".join(self.words)


def commands(page: Path) -> list[Command]:
    """All commands of a page, in its order."""
    text = page.read_text()
    found: list[Command] = []
    for block in _BLOCK.finditer(text):
        kind, inside = block.groups()
        if not kind and not inside[0].isspace():  # what begins with a space is a drawing
            first = _line(text, block.start(2))
            found += [Command(first + at, words, is_whole=True) for at, words in _split(inside)]
    prose = _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    for sentence in _INLINE.finditer(prose):
        words = tuple(shlex.split(sentence[1]))
        found.append(Command(_line(prose, sentence.start()), words, is_whole=False))
    return sorted(found, key=lambda command: command.line)


def configurations(page: Path) -> list[str]:
    """All blocks of YAML, in the page's order."""
    return [inside for kind, inside in _BLOCK.findall(page.read_text()) if kind == "yaml"]


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _split(inside: str) -> list[tuple[int, tuple[str, ...]]]:
    """Commands of a block: a line each, or several where a quote or a `\\` goes on."""
    found: list[tuple[int, tuple[str, ...]]] = []
    begun, first = "", 0
    for at, line in enumerate(inside.splitlines()):
        first = first if begun else at
        begun += line
        if begun.endswith("\\"):
            begun = begun.removesuffix("\\")
            continue
        try:
            words = tuple(shlex.split(begun, comments=True))
        except ValueError:  # an open quote
            begun += "\n"
            continue
        if words:
            found.append((first, words))
        begun = ""
    assert not begun, f"a quote is left open: {begun}"
    return found
