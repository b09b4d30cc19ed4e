"""Patterns over dotted names: what a list of them chooses.

A pattern stands for every name in which it is found between dots: `qkv` for each
`...attention.qkv`, `encoders.text` for all that is in it. In it, `*` is any text, dots included,
and `{A..B}` numbers of a list of layers, both ends included; negative ones count from its end, so
that `decoder.blocks.{-2..-1}` are its last two. A pattern that begins with `!` takes away.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated

from pydantic import Field

Pattern = Annotated[str, Field(pattern=r"^!?(?:[\w.*-]|\{-?\d{1,4}\.\.-?\d{1,4}\})+$")]

_PIECE = re.compile(r"\*|\{(-?\d+)\.\.(-?\d+)\}|[^*{]")
_COUNTS_FROM = 0x100000
"""Behind the number of a layer stands, as one character for private use, how many there are: no
pattern can take it for digits of the number."""
_ANY_COUNT = f"[{chr(_COUNTS_FROM)}-{chr(0x10FFFD)}]?"
_NEAR = 3


def chosen(patterns: Iterable[str], names: Sequence[str]) -> set[str]:
    """The names that a list of patterns chooses."""
    patterns = list(patterns)
    wanted = {name for p in patterns if not p.startswith("!") for name in _found(p, names)}
    refused = {name for p in patterns if p.startswith("!") for name in _found(p[1:], names)}
    return wanted - refused


def faults(key: str, patterns: Sequence[str], names: Sequence[str], *, what: str) -> Iterator[str]:
    """What is wrong with a list of patterns: some that are found nowhere, or all choose nothing.

    Args:
        key: of the configuration.
        patterns: as given there.
        names: what they are to choose among.
        what: one of these is, such as "linear layer".
    """
    absent = [pattern for pattern in patterns if not _found(pattern.removeprefix("!"), names)]
    for pattern in absent:
        near = _nearest(pattern.removeprefix("!"), names)
        yield f"{key}: no {what} is called {pattern}; the nearest are {', '.join(near)}"
    if not absent and not chosen(patterns, names):
        yield f"{key}: what is left of {', '.join(patterns)} is no {what}: take fewer away"


def _found(pattern: str, names: Sequence[str]) -> list[str]:
    sizes = _sizes(names)
    counts = sorted(set(sizes.values()))
    inner = "".join(_translated(piece, counts) for piece in _PIECE.finditer(pattern))
    wanted = re.compile(rf"(?:.*\.)?{inner}(?:\..*)?")
    return [name for name in names if wanted.fullmatch(_numbered(name, sizes))]


def _translated(piece: re.Match[str], counts: Sequence[int]) -> str:
    text, (first, last) = piece[0], piece.groups()
    if text == "*":
        return ".*"
    if first is None:
        return f"{text}{_ANY_COUNT}" if text.isdigit() else re.escape(text)
    places = [
        f"{index}{chr(_COUNTS_FROM + count)}"
        for count in counts
        for index in range(count)
        if _from_start(int(first), count) <= index <= _from_start(int(last), count)
    ]
    return f"(?:{'|'.join(places)})" if places else "(?!)"


def _from_start(index: int, count: int) -> int:
    return index if index >= 0 else count + index


def _sizes(names: Iterable[str]) -> dict[str, int]:
    """How many layers there are in each numbered list, by what their names begin with."""
    sizes: dict[str, int] = {}
    for name in names:
        for number in re.finditer(r"(?:(?<=\.)|^)\d+(?=\.|$)", name):
            before = name[: number.start()]
            sizes[before] = max(sizes.get(before, 0), int(number[0]) + 1)
    return sizes


def _numbered(name: str, sizes: dict[str, int]) -> str:
    """The name, each number in it followed by how many there are."""
    return re.sub(
        r"(?:(?<=\.)|^)\d+(?=\.|$)",
        lambda number: number[0] + chr(_COUNTS_FROM + sizes[name[: number.start()]]),
        name,
    )


def _nearest(pattern: str, names: Sequence[str]) -> list[str]:
    """Names, or parts of names, that look like a pattern."""
    parts = {name.rsplit(".", depth)[0] for name in names for depth in range(3)}
    ends = {name.rsplit(".", 1)[-1] for name in names}
    near = get_close_matches(pattern, sorted(parts | ends), n=_NEAR, cutoff=0.5)
    return near or sorted(ends)
