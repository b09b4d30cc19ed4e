"""A configuration's faults in a user's words: the key first, and the nearest key that there is."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

RENAMED: Mapping[str, str] = {
    "data.cache": "storage.cache",
    "data.cache_gib": "storage.cache_gib",
    "data.endpoint_url": "storage.endpoint_url",
    "data.layouts": "data.span_choices",
    "data.read_ahead_shards": "storage.read_ahead_files",
    "data.retry_budget_seconds": "storage.retry_budget_seconds",
    "data.timeout_seconds": "storage.timeout_seconds",
}
"""Keys of earlier versions by what they are called now. Users are told; what runs and checkpoints
have stored is translated."""

BEFORE: Mapping[str, Any] = {"data.balance": False}
"""What versions did that had no such key, where the default is another now."""

MOST_FAULTS: Final = 20
MOST_LETTERS: Final = 600
"""Of a fault; a longer one holds a text of the user's, whose middle is left out."""
KIND: Final = "kind"

Key = tuple[str, ...]


def in_words(model: type[BaseModel], faults: Sequence[str | Mapping[str, Any]]) -> str:
    """Faults one below the other, in bounded number and length.

    Args:
        model: configuration class that was to be filled.
        faults: lines, and what pydantic says of further ones.
    """
    faults = [fault for fault in faults if isinstance(fault, str) or not _is_other_word(fault)]
    lines = [
        fault if isinstance(fault, str) else explain(model, fault) for fault in faults[:MOST_FAULTS]
    ]
    if (more := len(faults) - len(lines)) > 0:
        lines.append(f"and {more:,} more")
    # A check of the whole tells all that it found at once.
    lines = "\n".join(lines).split("\n")
    return "\n".join(shortened(line, MOST_LETTERS) for line in lines)


def shortened(text: str, most: int) -> str:
    """A text without its middle, where it is longer than that."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def explain(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    """One fault that pydantic found, as a line.

    Args:
        model: configuration class that was to be filled.
        fault: what pydantic says of it.
    """
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:  # a check of the whole, which says itself where
        return message
    path, kind, members = _located(model, fault["loc"])
    where, given = ".".join(path), fault["input"]
    match fault["type"]:
        case "extra_forbidden" if where in RENAMED:
            return f"{where}: is called {RENAMED[where]} now"
        case "extra_forbidden":
            return f"{where}: no such key{_suggestion(model, path, kind)}"
        case "missing":
            return f"{where}: is missing"
        case "union_tag_not_found" | "union_tag_invalid":
            return _wrong_kind(where, given, [kind for each in members for kind in _kinds(each)])
        case "model_type" | "model_attributes_type" | "dict_type":
            message = "must hold keys and values"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            ((_, bound),) = fault["ctx"].items()
            message = f"{message.rpartition(' ')[0]} {bound:,}"
        case "int_type" | "float_type" if isinstance(given, str) and _has_underscores(given):
            message += " without _"
        case "int_type" if isinstance(given, float) and given.is_integer() and abs(given) < 1e15:
            message += f", written as {given:.0f}"
        case "int_type" | "float_type" if words := [w for each in members for w in _words(each)]:
            message += f" or {' or '.join(words)}"
        case "value_error" if any(
            _children(each, message.split(":")[0].split(".")[0]) for each in members
        ):
            return f"{where}.{message}"
        case _:
            pass
    is_scalar = isinstance(given, str | int | float | bool | None)
    shown = f" (got {shortened(repr(given), 80)})" if is_scalar else ""
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _is_other_word(fault: Mapping[str, Any]) -> bool:
    """Whether it says that what may be a number or a word is not the word: so does the other."""
    location = fault["loc"]
    return fault["type"] == "literal_error" and str(location[-1]).startswith("literal[")


def _has_underscores(number: str) -> bool:
    return "_" in number and number.replace("_", "").replace(".", "", 1).isdecimal()


def _located(
    model: type[BaseModel], location: Sequence[str | int]
) -> tuple[Key, str | None, list[Any]]:
    """A fault's key, the kind of the section that it stands in, and the types it may be of.

    Among the keys pydantic names the kind of each union on the way.
    """
    path: list[str] = []
    members, kind, section_kind = [model], None, None
    for part in location:
        if any(map(_words, members)):
            continue  # not a key: it says that a number was tried, where a word may stand too
        if kind is None and any(map(_kinds, members)):
            members, kind = [each for each in members if part in _kinds(each)], str(part)
            continue
        name = str(part)
        path.append(name if name and name.isprintable() else repr(name))
        members = [found for each in members for found in _children(each, part)]
        kind, section_kind = None, kind
    return tuple(path), section_kind, members


def _wrong_kind(where: str, section: Any, kinds: Sequence[str]) -> str:
    named = " or ".join(kinds)
    if KIND in section:
        given = shortened(str(section[KIND]), 80)
        near = get_close_matches(given, kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"say {named}"
        return f"{where}.{KIND}: there is no kind {given}; {hint}"
    if near := get_close_matches(KIND, section, n=1):
        return f"{where}.{near[0]}: no such key; did you mean {where}.{KIND}?"
    return f"{where}.{KIND}: is missing: say {named}"


def _suggestion(model: type[BaseModel], path: Key, kind: str | None) -> str:
    *above, key = path
    key = shortened(key, 80).lower()
    keys = _keys(model)
    siblings = [
        found[-1]
        for found, owner in keys
        if len(found) == len(path)
        and all(part in (given, "NAME") for part, given in zip(found, above, strict=False))
        and (kind is None or kind in _kinds(owner))
    ]

    def shared(found: Key) -> int:
        pairs = enumerate(zip(found, [*above, ""], strict=False))
        return next((i for i, (part, given) in pairs if part not in (given, "NAME")), len(above))

    # Of keys of the same name, the one that has most of the way in common.
    by_way = sorted((found for found, _ in reversed(keys)), key=shared)
    named = {found[-1]: ".".join(found) for found in by_way}
    near = get_close_matches(key, siblings, n=1, cutoff=0.6)
    if key in named and not (near and _is_meant(key, near[0])):
        best = named[key]
    elif near:
        best = ".".join([*above, near[0]])
    else:
        best = "".join(named[name] for name in get_close_matches(key, named, n=1, cutoff=0.75))
    if best:
        return f"; did you mean {best}?"
    return f"; valid here: {', '.join(siblings)}" if siblings else ""


def _is_meant(key: str, sibling: str) -> bool:
    """Whether a key that another section has is rather a mistyped one of this section."""
    if len(key) <= 3:  # near matches of a key as short as `lr` are chance
        return False
    is_part = set(key.split("_")) <= set(sibling.split("_"))
    return is_part or SequenceMatcher(None, key, sibling).ratio() > 0.8


def _kinds(member: Any) -> tuple[str, ...]:
    """What `kind` may be in a class of a union."""
    if isinstance(member, type) and issubclass(member, BaseModel) and KIND in member.model_fields:
        return get_args(member.model_fields[KIND].annotation)
    return ()


def _words(member: Any) -> tuple[str, ...]:
    """What a value may be that is one of a few words."""
    return get_args(member) if get_origin(member) is Literal else ()


def _children(member: Any, part: str | int) -> list[Any]:
    """The types that what lies at a key, or at a place in a list, may be of."""
    if isinstance(member, type) and issubclass(member, BaseModel):
        field = member.model_fields.get(str(part))
        return [] if field is None else _members(field.annotation)
    arguments = () if get_origin(member) is Literal else get_args(member)
    return _members(arguments[-1]) if arguments else []


def _members(annotation: Any) -> list[Any]:
    """The concrete types an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [m for part in get_args(annotation) for m in _members(part)]
    return [annotation]


@cache
def _keys(model: type[BaseModel]) -> list[tuple[Key, type[BaseModel]]]:
    """Every key that there may be, as its path, with its owner; NAME stands for what users name."""
    return list(_keys_below(model, ()))


def _keys_below(annotation: Any, above: Key) -> Iterator[tuple[Key, type[BaseModel]]]:
    for member in _members(annotation):
        if get_origin(member) is dict:
            yield from _keys_below(get_args(member)[1], (*above, "NAME"))
        elif isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                yield (*above, name), member
                yield from _keys_below(field.annotation, (*above, name))
