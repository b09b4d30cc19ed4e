"""Documents that a builder makes itself, rather than finds in files: written down as records.

A record is a line of JSON as in a `.jsonl` source, with `id`, the whole name of its document, and
`split`, where it belongs.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Made:
    """What records were made of.

    Attributes:
        described: for the manifest: name and licences of each source, and what is known besides.
        licence_texts: copyright files by source.
    """

    described: list[dict[str, Any]]
    licence_texts: dict[str, str]

    @property
    def licences(self) -> list[str]:
        """Of all sources."""
        return sorted({licence for source in self.described for licence in source["licences"]})


class Maker(Protocol):
    """Makes records."""

    @property
    def name(self) -> str:
        """What the source is called."""
        ...

    @property
    def identity(self) -> str:
        """Another one if other records would be made."""
        ...

    def write(self, path: Path, *, report: Callable[[str], None]) -> Made:
        """Write the records to a file.

        Args:
            path: of the file.
            report: told what is being done.

        Raises:
            DataError: they cannot be made.
        """
        ...


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as lines, all or none.

    Raises:
        DataError: there are none.
    """
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not partial.stat().st_size:
        raise DataError("The sources hold no English prose; name others.")
    partial.replace(path)
