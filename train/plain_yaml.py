"""YAML as configurations are written in it: the core schema of version 1.2, and merge keys.

One door for files, overrides and what runs have stored. PyYAML reads version 1.1, where `yes` is
true, `010` is 8 and `1:30` is 90; so its parser is used alone, and what a scalar means is said
here. Keys are names, and always text.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, cast

import yaml

MOST_BYTES: Final = 2**20
MOST_VALUES: Final = 20_000
"""Of a document, with aliases replaced by what they stand for."""
MOST_LEVELS: Final = 32
MOST_DIGITS: Final = 100
_TOO_DEEP: Final = f"is nested deeper than {MOST_LEVELS} levels, as no configuration is"

Tree = dict[str, Any]

_ODD: Final = re.compile("[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no YAML has, and those that one version takes for the end of a line."""

_PREFIX: Final = "tag:yaml.org,2002:"
_UNTAGGED: Final = (None, "!")


def _float(text: str) -> float:
    number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if abs(number) == float("inf") and "inf" not in text.lower():
        raise OverflowError
    return number


_SCHEMA: Final[dict[str, tuple[re.Pattern[str], Callable[[str], Any], str]]] = {
    "null": (re.compile(r"|~|null|Null|NULL"), lambda _: None, "~nN"),
    "bool": (
        re.compile(r"true|True|TRUE|false|False|FALSE"),
        lambda text: text.lower() == "true",
        "tTfF",
    ),
    "int": (
        re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
        "-+0123456789",
    ),
    "float": (
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
            r"|\.(nan|NaN|NAN)"
        ),
        _float,
        "-+.0123456789",
    ),
}
"""Of each type the scalars, what makes a value of them, and what they begin with."""


class YamlError(ValueError):
    """A text that is no such YAML; the message says where, why, and what to do."""


def parse(text: str | bytes, *, comments: bool = True) -> Any:
    """The document in a text, None if it is empty.

    Args:
        text: in UTF-8.
        comments: whether a comment may stand behind the value. In an override it would be a part
            of the value that is lost.

    Raises:
        YamlError: the text is no such document.
    """
    if len(text) > MOST_BYTES:
        raise YamlError(f"is longer than {MOST_BYTES // 1024} KiB, which no configuration is")
    try:
        content = text.encode() if isinstance(text, str) else text
        text = content.decode("utf-8-sig")
    except UnicodeError:
        raise YamlError("is no text in UTF-8: name a file of text, or save it in UTF-8") from None
    if (odd := _ODD.search(text)) is not None:
        raise YamlError(
            f"{_position(text, odd.start())}: has the character U+{ord(odd[0]):04X}: take it out, "
            f'or write "\\u{ord(odd[0]):04x}" within quotes'
        )
    builder = _Builder(text)
    try:
        value = builder.document()
    except yaml.MarkedYAMLError as error:
        # libyaml has a limit of its own, which it meets first where it reads ahead.
        is_deep = error.problem == "exceeded maximum nesting depth"
        _refuse(_TOO_DEEP if is_deep else f"is not YAML: {error.problem}", error.problem_mark)
    comment = text.find("#", builder.end)
    if not comments and comment >= 0:
        raise YamlError(
            f"{_position(text, comment)}: a comment begins here: put the whole value into quotes"
        )
    return value


def dump(tree: Any) -> str:
    """A document that `parse`, and readers of version 1.1, take for the same."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what would be another type in either version."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _type, (_pattern, _, _first) in _SCHEMA.items():
    _Dumper.add_implicit_resolver(
        _PREFIX + _type, re.compile(rf"(?:{_pattern.pattern})\Z"), list(_first)
    )


class _Builder:
    """Makes values of a parser's events, in bounded depth and number."""

    def __init__(self, text: str) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._events = cast(Iterator[Any], yaml.parse(text, Loader=loader))
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._num_values = 0
        self.end = 0
        """Where the value ends in the text."""

    def document(self) -> Any:
        """The only document."""
        next(self._events)
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), level=0)
        next(self._events)
        if not isinstance(after := next(self._events), yaml.StreamEndEvent):
            _refuse("another document begins here: keep one in a file", after.start_mark)
        return value

    def _value(self, event: Any, *, level: int) -> Any:
        mark = event.start_mark
        if level > MOST_LEVELS:
            _refuse(_TOO_DEEP, mark)
        if isinstance(event, yaml.AliasEvent):
            self.end = event.end_mark.index
            if event.anchor not in self._anchors:
                _refuse(f"the anchor &{_short(event.anchor)} has not ended before here", mark)
            value, num_values = self._anchors[event.anchor]
            self._count(num_values, mark)
            return value
        before = self._num_values
        self._count(1, mark)
        if isinstance(event, yaml.ScalarEvent):
            self.end = event.end_mark.index
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            _require_tag(event, "seq")
            value = [self._value(item, level=level + 1) for item in self._items()]
        else:
            _require_tag(event, "map")
            value = self._mapping(level)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._num_values - before
        return value

    def _items(self) -> Iterator[Any]:
        """Events that begin an item, until the collection ends."""
        for event in self._events:
            if isinstance(event, yaml.CollectionEndEvent):
                self.end = event.end_mark.index
                return
            yield event

    def _mapping(self, level: int) -> Tree:
        own: Tree = {}
        merged: list[Any] = []
        for event in self._items():
            is_merge = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
            is_merge = is_merge and event.value == "<<"
            name = self._key(event, level)
            value = self._value(next(self._events), level=level + 1)
            if name in own or (is_merge and merged):
                _refuse(f"{_short(name)} stands there twice: leave one out", event.start_mark)
            if not is_merge:
                own[name] = value
                continue
            merged = value if isinstance(value, list) else [value]
            if not merged or not all(isinstance(each, dict) for each in merged):
                _refuse("<< merges keys and values, such as those of an alias", event.start_mark)
        # The first of those merged wins over the later ones, and what stands here over all.
        found: Tree = {}
        for each in [*reversed(merged), own]:
            found |= each
        return found

    def _key(self, event: Any, level: int) -> str:
        if isinstance(event, yaml.ScalarEvent) and event.tag in _UNTAGGED:
            self._count(1, event.start_mark)
            if event.anchor is not None:
                self._anchors[event.anchor] = event.value, 1
            return event.value
        name = self._value(event, level=level + 1)
        if not isinstance(name, str):
            _refuse("a key has to be text", event.start_mark)
        return name

    def _count(self, num_values: int, mark: Any) -> None:
        self._num_values += num_values
        if self._num_values > MOST_VALUES:
            _refuse(f"holds more than {MOST_VALUES:,} values, as no configuration does", mark)


def _scalar(event: Any) -> Any:
    text: str = event.value
    if event.tag == "!" or (event.tag is None and not event.implicit[0]):
        return text
    given = None if event.tag is None else event.tag.removeprefix(_PREFIX)
    if given == "str":
        return text
    if given is not None and given not in _SCHEMA:
        _require_tag(event, "str")
    for name, (pattern, construct, _) in _SCHEMA.items():
        if given not in (None, name) or pattern.fullmatch(text) is None:
            continue
        try:
            if name == "int" and len(text) > MOST_DIGITS:
                raise OverflowError
            return construct(text)
        except OverflowError:
            _refuse(f"{_short(text)} is beyond any number here", event.start_mark)
    if given is not None:
        _refuse(f"{_short(text)} is no {given}: leave out the tag !!{given}", event.start_mark)
    return text


def _require_tag(event: Any, name: str) -> None:
    if event.tag not in (*_UNTAGGED, _PREFIX + name):
        tag = event.tag.replace(_PREFIX, "!!")
        _refuse(f"the tag {_short(tag)} means nothing here: leave it out", event.start_mark)


def _refuse(problem: str, mark: Any) -> NoReturn:
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    raise YamlError(f"{where}{problem}") from None


def _position(text: str, index: int) -> str:
    line = text.count("\n", 0, index)
    return f"line {line + 1}, column {index - text.rfind(chr(10), 0, index)}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
