"""Reads JSON objects that hold one very long list, an entry at a time.

An index of a hundred thousand shards is 60 MB of JSON, which parsed as a whole takes ten times as
much memory, in every rank.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final

_SPACE: Final = re.compile(r"[ \t\n\r]*")


def read_listing(data: bytes, *, key: str, take: Callable[[Any], None]) -> dict[str, Any]:
    """Parse an object and hand over the entries of one list in it, one by one.

    Args:
        data: the object as JSON.
        key: names the list.
        take: called with each of its entries, in order.

    Returns:
        The rest of the object; `key` is in it, empty, if the list was there.

    Raises:
        ValueError: it is not JSON, not an object, or `key` is no list.
    """
    text = data.decode("utf-8")
    decoder = json.JSONDecoder()
    rest: dict[str, Any] = {}
    place = _expect(text, 0, "{")
    if _peek(text, place) == "}":
        return _end(text, _expect(text, place, "}"), rest)
    while True:
        name, place = decoder.raw_decode(text, _skip(text, place))
        if not isinstance(name, str) or name in rest:
            raise ValueError(f"a key is no string or comes twice: {name!r:.80}")
        place = _expect(text, place, ":")
        if name == key:
            rest[name] = []
            place = _take_list(text, place, decoder, take)
        else:
            rest[name], place = decoder.raw_decode(text, _skip(text, place))
        if _peek(text, place) == "}":
            return _end(text, _expect(text, place, "}"), rest)
        place = _expect(text, place, ",")


def _take_list(
    text: str, place: int, decoder: json.JSONDecoder, take: Callable[[Any], None]
) -> int:
    place = _expect(text, place, "[")
    if _peek(text, place) == "]":
        return _expect(text, place, "]")
    while True:
        entry, place = decoder.raw_decode(text, _skip(text, place))
        take(entry)
        if _peek(text, place) == "]":
            return _expect(text, place, "]")
        place = _expect(text, place, ",")


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None, "the pattern matches nothing as well"
    return match.end()


def _peek(text: str, place: int) -> str:
    place = _skip(text, place)
    return text[place : place + 1]


def _expect(text: str, place: int, sign: str) -> int:
    place = _skip(text, place)
    if text[place : place + 1] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, place)
    return place + 1


def _end(text: str, place: int, rest: dict[str, Any]) -> dict[str, Any]:
    if _skip(text, place) != len(text):
        raise json.JSONDecodeError("Extra data", text, place)
    return rest
