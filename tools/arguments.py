"""Types of command-line arguments: what makes no sense is refused before any work is done."""

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from typing_extensions import override

from train.errors import StorageError, UserError, told
from train.storage import path as paths

MOST_WHOLE: Final = 2**63 - 1
_WHOLE: Final = re.compile(r"[-+]?[0-9]+")
_SHOWN_CHARACTERS: Final = 40


class Parser(argparse.ArgumentParser):
    """Parses the arguments of a command; what it refuses is said in few words."""

    @override
    def error(self, message: str) -> NoReturn:
        super().error(told(message))

    @override
    def add_subparsers(self, **options: Any) -> Any:
        make: Any = super().add_subparsers
        return make(**{"parser_class": _Command, **options})

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Python 3.11 makes an empty list of it, whatever the type.
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "'--' is no value")
        return super()._get_values(action, arg_strings)  # pyright: ignore[reportAttributeAccessIssue]


class _Command(Parser):
    """One of a command's own commands: what it does not know is told with its own usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        found, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return found, others


def utf8(text: str) -> str:
    """The type of a text, where bytes that are not UTF-8 make no sense."""
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise _refused(text, "write it in UTF-8")
    return text


def whole(*, least: int = 0, most: int = MOST_WHOLE) -> Callable[[str], int]:
    """The type of a whole number within bounds."""
    bounds = f"from {least:,} on" if most == MOST_WHOLE else f"from {least:,} to {most:,}"

    def parse(text: str) -> int:
        digits = text.strip()
        # Numbers of more digits are beyond every bound, and slow to read.
        if _WHOLE.fullmatch(digits) and len(digits) < 100 and least <= int(digits) <= most:
            return int(digits)
        raise _refused(text, f"give a whole number {bounds}")

    return parse


def real(
    *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> Callable[[str], float]:
    """The type of a finite number within bounds."""
    bounds = [
        *([f"from {least:g} on"] if least > -math.inf else []),
        *([f"above {above:g}"] if above > -math.inf else []),
        *([f"at most {most:g}"] if most < math.inf else []),
    ]

    def parse(text: str) -> float:
        try:
            value = float(text) if text.isascii() else math.nan
        except ValueError:
            value = math.nan
        if math.isfinite(value) and value > above and least <= value <= most:
            return value
        raise _refused(text, f"give a number {' and '.join(bounds)}".rstrip())

    return parse


def local_path(text: str) -> Path:
    """The type of a file or directory of this host."""
    try:
        return paths.local_path(text)
    except StorageError as error:
        raise argparse.ArgumentTypeError(told(error)) from None


def output_file(text: str) -> Path:
    """The type of a file of this host that is to be written, and can be."""
    path = local_path(text)
    try:
        require_writable(path)
    except UserError as error:
        raise argparse.ArgumentTypeError(told(error)) from None
    return path


def require_writable(path: Path) -> None:
    """Refuses a file that cannot be written, before the work whose result it is for.

    Raises:
        StorageError: it is no file, or its directory cannot be made or written to.
    """
    try:
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        is_file = path.is_file() or path.is_char_device()
        is_possible = is_file if nearest == path else nearest.is_dir()
        is_possible = is_possible and os.access(nearest, os.W_OK)
    except OSError:  # a name too long, a directory that may not be searched
        is_possible = False
    if not is_possible:
        raise StorageError(told(f"{path}: cannot be written; name a file in a directory that can"))


def _refused(text: str, remedy: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return argparse.ArgumentTypeError(f"{shown!r}: {remedy}")
