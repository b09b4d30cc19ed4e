"""The files of a data set as it lies on disk: JSON, lines, tables, and the media they name."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

from tools.packages.kept import sha256
from train.errors import DataError

_WITHIN: Final = ("", "annotations", "data", "karpathy", "captions", "dataset", "raw")
"""Directories in which the files that tell about media are looked for."""
_LARGEST_FIELD: Final = 1 << 24

Row = dict[str, Any]


@dataclass(kw_only=True)
class Given:
    """A data set on disk.

    Attributes:
        root: directory of the files that tell about media.
        media: directory below which the media lie.
        used: SHA-256 of the files that were read, by path.
        at: what is being read, for messages: file and record.
    """

    root: Path
    media: Path
    used: dict[str, str] = field(default_factory=dict[str, str])
    at: str = ""

    def path(self, *names: str) -> Path:
        """The first of some files that there is, in the directory or where archives leave it.

        Raises:
            DataError: there is none.
        """
        places = [self.root / within / name for name in names for within in _WITHIN]
        for place in places:
            if place.is_file():
                return self._noted(place)
        raise DataError(
            f"{self.root} holds no {' or '.join(names)} (nor do {', '.join(_WITHIN[1:])} in it): "
            "name the directory that has it, or another --split"
        )

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return any((self.root / within / name).is_file() for within in _WITHIN)

    def json(self, *names: str) -> Any:
        """What a file of JSON holds, all of it in memory.

        Raises:
            DataError: there is none, or it is not whole.
        """
        path = self.path(*names)
        self.at = str(path)
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is not JSON, or not all of it ({error}): get it again"
            ) from None

    def listed(self, name: str, items: Any) -> Iterator[Row]:
        """The objects of a list, each noted before it is given."""
        where = self.at
        if not isinstance(items, list):
            raise TypeError(f"{name or 'it'} is no list")
        for number, item in enumerate(cast(list[Row], items)):
            self.at = f"{where}: {name}[{number}]"
            yield item
        self.at = where

    def lines(self, path: Path) -> Iterator[str]:
        """The lines of a text.

        Raises:
            DataError: it is not UTF-8.
        """
        try:
            with path.open(encoding="utf-8-sig", newline="\n") as text:
                for number, line in enumerate(text, 1):
                    self.at = f"{path}:{number}"
                    yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.at or path}: what follows is not UTF-8 ({error.reason})"
            ) from None

    def json_lines(self, *names: str) -> Iterator[Row]:
        """The objects of a file that has one a line.

        Raises:
            DataError: there is none, or a line is no JSON.
        """
        for line in self.lines(self.path(*names)):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{self.at} is not JSON ({error}): get it again") from None

    def tabbed(self, path: Path, columns: int) -> Iterator[list[str]]:
        """The rows of a table without a header whose columns are parted by tabs.

        Raises:
            ValueError: a row has another number of columns.
        """
        for line in self.lines(path):
            cells = line.split("\t")
            if len(cells) != columns:
                raise ValueError(f"it has {len(cells)} columns, not {columns}")
            yield cells

    def table(self, *names: str) -> Iterator[Row]:
        """The rows of a CSV with a header.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = self.path(*names)
        csv.field_size_limit(_LARGEST_FIELD)
        self.at = f"{path}:1"
        try:
            with path.open(encoding="utf-8-sig", newline="") as text:
                rows = csv.DictReader(text, strict=True)
                for row in rows:
                    self.at = f"{path}:{rows.line_num}"
                    if None in row or None in row.values():
                        raise ValueError(f"it has not {len(rows.fieldnames or ())} columns")
                    yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.at}: what follows cannot be read ({error}): get it again"
            ) from None

    def below(self, *names: str) -> Path:
        """The first of some directories that there is.

        Raises:
            DataError: there is none.
        """
        found = next((self.root / name for name in names if (self.root / name).is_dir()), None)
        if found is None:
            raise DataError(f"{self.root} holds no directory {' or '.join(names)}")
        return found

    def medium(self, names: Sequence[str]) -> str | None:
        """The first of some media that there is and that is not empty, by its path from `media`."""
        found = (name for name in names if os.path.isfile(self.media / name))
        return next((name for name in found if os.path.getsize(self.media / name)), None)

    def _noted(self, path: Path) -> Path:
        self.used.setdefault(path.relative_to(self.root).as_posix(), sha256(path))
        return path


def text(row: Mapping[str, Any], key: str) -> str:
    """A text of a record.

    Raises:
        KeyError: the record has no such field.
        TypeError: it is no text.
    """
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {type(value).__name__}, not text")
    return value.strip()


def number(row: Mapping[str, Any], key: str) -> int:
    """A whole number of a record.

    Raises:
        KeyError: the record has no such field.
        TypeError: it is none.
    """
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key} is {type(value).__name__}, not a whole number")
    return value


def file_name(name: str) -> str:
    """A name of a file as a record tells it, without the directories before it.

    Raises:
        ValueError: it is none.
    """
    found = PurePosixPath(name).name
    if not found or found == ".." or "\0" in found:
        raise ValueError(f"{name!r} is no name of a file")
    return found


Read = Callable[[Given, str], Iterator[Row]]
"""Reads a split: rows of a form, each medium as the places where it may lie."""


def within(directories: Sequence[str], name: str) -> tuple[str, ...]:
    """Places where a file may lie."""
    return tuple(f"{directory}/{name}" if directory else name for directory in directories)
