"""A file of rows to which several commands add theirs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tools.command import write_json
from train.errors import DataError

DEFAULT_OUT: Final = "out/encoders.json"


def keep(out: Path, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows in the place of those of the same key, beside the others of a file.

    Raises:
        DataError: it holds something else.
    """
    found: Any = []
    if out.exists():
        try:
            found = json.loads(out.read_text())
        except ValueError as error:
            raise DataError(f"{out} is no JSON ({error}): name another file") from None
    if not isinstance(found, list):
        raise DataError(f"{out} holds no rows: name another file")
    mine = {row[key] for row in rows}
    write_json(out, [*(row for row in found if row.get(key) not in mine), *rows])
