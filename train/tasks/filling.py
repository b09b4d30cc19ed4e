"""Texts with places that a record's columns fill, in jinja's language."""

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, cast

from jinja2 import StrictUndefined, TemplateError, Undefined, meta
from jinja2.filters import do_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_eval_context
from typing_extensions import override

from train.prompt import Part, parse


def _given(value: Any) -> Any:
    """What a place in a text is filled with: not what would read as Python's `None` or `{'a': 1}`.

    Files of tables write a missing number as NaN.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(
            "a value is null: pass the record over with source.keep, or say what to write for it, "
            "as in {{ column or 'nothing' }}"
        )
    if isinstance(value, Mapping):
        fields = ", ".join(map(str, value))
        raise ValueError(f"a value is of several fields: name one of {fields or 'them'}")
    if isinstance(value, list | tuple):
        raise ValueError("a value is a list: say what stands between, as in | join(', ')")
    if not isinstance(value, str | int | float | Undefined | datetime.date | Decimal):
        raise ValueError(f"a value is {type(value).__name__}, and no text: name another")
    return value


@pass_eval_context
def _joined(context: Any, value: Iterable[Any], *arguments: Any, **options: Any) -> Any:
    found = [*value]
    if not arguments[1:] and "attribute" not in options:
        found = [_given(each) for each in found]
    return do_join(context, found, *arguments, **options)


class _Environment(ImmutableSandboxedEnvironment):
    """In which a field of a record comes before what Python's dictionaries have, as `items`."""

    @override
    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


_ENVIRONMENT: Final = _Environment(
    undefined=StrictUndefined, keep_trailing_newline=True, finalize=_given
)
_ENVIRONMENT.filters["join"] = cast(Any, _joined)

MEDIA: Final = ("image", "audio", "video")
"""Modalities whose items records may bring."""

RECORD: Final = "record"
"""All columns of a record, for those whose name is none: `record['label-coarse']`."""


class FillingError(ValueError):
    """A record does not fill a text; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a template that is filled.

    Attributes:
        text: with nothing left to fill.
        is_span: whether `[[` and `]]` enclose it.
    """

    text: str
    is_span: bool


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A place in a template where an item stands.

    Attributes:
        medium: name of its modality.
        value: what the record says of it: bytes, a path, or a mapping with either.
    """

    medium: str
    value: Any


class Expression:
    """Gives a value of a record's columns.

    Raises:
        ValueError: it is not jinja's language.
    """

    def __init__(self, text: str):
        self.names = _names(f"{{{{ {text} }}}}")
        try:
            self._compiled = _ENVIRONMENT.compile_expression(text, undefined_to_none=False)
        except TemplateError as error:  # of what is more than one
            raise ValueError(f"cannot be read as a jinja expression: {error}") from None

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The value.

        Raises:
            FillingError: a column lacks what is asked of it.
        """
        try:
            found = self._compiled(values)  # by no name: a column may have any
            if isinstance(found, Undefined):
                found = str(found)  # raises, and says what is missing
        except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise FillingError(str(error)) from error
        return found


class Text:
    """Gives a text of a record's columns.

    Raises:
        ValueError: it is not jinja's language.
    """

    def __init__(self, text: str):
        self.names = _names(text)
        self._compiled = _ENVIRONMENT.from_string(text)

    def __call__(self, values: Mapping[str, Any]) -> str:
        """The text.

        Raises:
            FillingError: a column lacks what is asked of it.
        """
        try:
            return self._compiled.render(values)
        except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise FillingError(str(error)) from error


_WHOLE: Final = re.compile(r"\{\{-?((?:(?!\}\}).)*?)-?\}\}", re.DOTALL)
"""A template of one expression, whose value may be what no text can hold."""


class Marked:
    """A text with marks of spans; what fills it marks none. Outside of spans a line is a paragraph.

    `[[image:{{ picture }}]]` stands for the picture that the column holds, or whose path it holds.

    Raises:
        ValueError: it is not jinja's language, part for part.
        UserError: a mark makes no sense.
    """

    def __init__(self, text: str):
        self._parts = [(part, _filler(part)) for part in parse(text, media=MEDIA)]
        self.names = frozenset[str]().union(*(filler.names for _, filler in self._parts))

    @property
    def has_media(self) -> bool:
        """Whether items stand in it."""
        return any(part.medium for part, _ in self._parts)

    def __call__(self, values: Mapping[str, Any]) -> list[Stretch | Brought]:
        """The stretches, in order.

        Raises:
            FillingError: a column lacks what is asked of it.
        """
        return [
            Brought(medium=part.medium, value=filler(values))
            if part.medium
            else Stretch(text=filler(values), is_span=part.is_span)
            for part, filler in self._parts
        ]


def _filler(part: Part) -> "Text | Expression":
    whole = _WHOLE.fullmatch(part.text) if part.medium else None
    if whole is not None:
        return Expression(whole[1])
    return Text(part.text if part.is_span else part.text.replace("\n", "\n\n"))


def _names(text: str) -> frozenset[str]:
    """The columns that a template asks for."""
    try:
        found = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    except TemplateError as error:
        raise ValueError(f"cannot be read as a jinja template: {error}") from None
    return frozenset(found - _ENVIRONMENT.globals.keys())
