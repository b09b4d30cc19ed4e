"""Writes a task's records: three splits that share no unit, a manifest, licences."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.packages.used import Packages
from train.errors import DataError
from train.tasks.task import Split

FORMAT_VERSION: Final = 2
MANIFEST_NAME: Final = "manifest.json"
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
_TENTHS: Final[dict[Split, int]] = {"train": 8, "validation": 1, "test": 1}

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task's records are made.

    Attributes:
        make: gives them, each with `unit`: those of one unit are in one split, of all tasks. A
            `split` that a record brings counts instead.
        unit: what a unit is, for the manifest.
        distinct: columns in which no two units may be equal; of those that are, one counts.
    """

    make: Callable[[Packages], Iterator[Row]]
    unit: str
    distinct: tuple[str, ...] = ()


def split_of(unit: str) -> Split:
    """Where the records of a unit belong, whatever else there is."""
    number = int.from_bytes(hashlib.sha256(unit.encode()).digest()[:4], "big") % 10
    for split, tenths in _TENTHS.items():
        number -= tenths
        if number < 0:
            return split
    raise AssertionError("tenths make ten")


def build(
    name: str,
    recipe: Recipe,
    out: Path,
    packages: Packages,
    *,
    most: Mapping[Split, int],
) -> dict[str, Any]:
    """Build a task, unless it is there.

    Args:
        name: of the task.
        recipe: how its records are made.
        out: directory of tasks.
        packages: what it is made of; `used` holds what others were made of before.
        most: records of each split.

    Returns:
        The manifest.

    Raises:
        DataError: a package cannot be had, or gives no records for a split.
    """
    asked = {"format_version": FORMAT_VERSION, "task": name, "most": dict(most)}
    manifest = manifest_of(out / name / MANIFEST_NAME)
    if manifest is not None and asked.items() <= manifest.items():
        return manifest
    left_out = Counter[str]()
    rows = _spread(recipe, packages, left_out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as scratch:
        written = Path(scratch) / name
        (written / "licences").mkdir(parents=True)
        splits: dict[str, Any] = {}
        for split, found in rows.items():
            if not found:
                raise DataError(f"{name}: the packages give no records for the split {split}.")
            left_out[f"beyond the limit of {split}"] += max(0, len(found) - most[split])
            splits[split] = _write(written / f"{split}.jsonl", found[: most[split]])
        for source, text in packages.licence_texts.items():
            (written / "licences" / f"{source}.txt").write_text(text)
        manifest = {
            **asked,
            "unit": recipe.unit,
            "splits": splits,
            "left_out": {reason: count for reason, count in left_out.items() if count},
            "sources": packages.used,
        }
        (written / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")
        if (out / name).exists():
            shutil.rmtree(out / name)
        os.rename(written, out / name)
    return manifest


def _spread(recipe: Recipe, packages: Packages, left_out: Counter[str]) -> dict[Split, list[Row]]:
    """The records of each split, those of a unit in one, by the hash of their content."""
    rows: dict[Split, dict[bytes, Row]] = {split: {} for split in SPLITS}
    seen: dict[str, str] = {}
    for row in recipe.make(packages):
        key = json.dumps([row[column] for column in recipe.distinct or (*row,)])
        if seen.setdefault(key, row["unit"]) != row["unit"]:
            left_out["equal to one of another unit"] += 1
            continue
        order = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
        split = row.get("split") or split_of(row["unit"])
        rows[split][order] = {name: value for name, value in row.items() if name != "split"}
    return {split: [row for _, row in sorted(found.items())] for split, found in rows.items()}


def _write(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Write a split; what the manifest says of it."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(content)
    return {
        "records": len(rows),
        "units": len({row["unit"] for row in rows}),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest of a task that is there."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
