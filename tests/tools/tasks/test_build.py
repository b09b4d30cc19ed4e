"""How records are spread over splits, and what is kept of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.tools.tasks.making import packages
from tools.packages.used import Packages
from tools.tasks.__main__ import main
from tools.tasks.build import SPLITS, Recipe, Row, build
from tools.tasks.recipes import RECIPES
from train.errors import DataError
from train.tasks.task import Split, load_tasks

MOST: Final[dict[Split, int]] = {"train": 1_000, "validation": 1_000, "test": 1_000}


def recipe(*rows: Row, **options: Any) -> Recipe:
    def make(packages: Packages) -> Iterator[Row]:
        packages.licence_texts["x"] = "Do as you like."
        yield from rows

    return Recipe(make=make, unit="word", **options)


def read(out: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "x" / f"{split}.jsonl").read_text().splitlines()]


ROWS = [{"unit": f"word {n // 3}", "text": f"{n}"} for n in range(600)]


def test_a_unit_is_in_one_split_and_every_record_in_some(tmp_path: Path) -> None:
    manifest = build("x", recipe(*ROWS), tmp_path, packages(tmp_path), most=MOST)
    found = {split: read(tmp_path, split) for split in SPLITS}
    units = [{row["unit"] for row in rows} for rows in found.values()]
    assert sum(map(len, units)) == len(set.union(*units)) == 200
    assert sorted(row["text"] for rows in found.values() for row in rows) == sorted(
        row["text"] for row in ROWS
    )
    assert 0.7 < len(found["train"]) / 600 < 0.9
    assert [manifest["splits"][s]["units"] for s in SPLITS] == [len(each) for each in units]
    assert (tmp_path / "x/licences/x.txt").read_text() == "Do as you like."
    assert not list(tmp_path.glob(".x.*"))


def test_more_records_move_no_unit(tmp_path: Path) -> None:
    build("x", recipe(*ROWS[:300]), tmp_path / "a", packages(tmp_path), most=MOST)
    build("x", recipe(*ROWS), tmp_path / "b", packages(tmp_path), most=MOST)
    for split in SPLITS:
        few, many = ({row["text"] for row in read(tmp_path / out, split)} for out in "ab")
        assert few <= many


def test_a_record_brings_its_split(tmp_path: Path) -> None:
    rows = [{"unit": "w", "split": split, "text": split} for split in SPLITS]
    build("x", recipe(*rows), tmp_path, packages(tmp_path), most=MOST)
    assert [read(tmp_path, split) for split in SPLITS] == [
        [{"unit": "w", "text": split}] for split in SPLITS
    ]


def test_what_is_equal_in_two_units_counts_once(tmp_path: Path) -> None:
    twice = [{**row, "unit": f"{row['unit']} again"} for row in ROWS]
    built = build(
        "x", recipe(*ROWS, *twice, distinct=("text",)), tmp_path, packages(tmp_path), most=MOST
    )
    assert built["left_out"] == {"equal to one of another unit": 600}


def test_the_limit_of_a_split_is_told(tmp_path: Path) -> None:
    most: dict[Split, int] = {**MOST, "train": 10}
    built = build("x", recipe(*ROWS), tmp_path, packages(tmp_path), most=most)
    assert len(read(tmp_path, "train")) == built["splits"]["train"]["records"] == 10
    assert built["left_out"]["beyond the limit of train"] > 300


def test_what_is_there_is_not_built_again(tmp_path: Path) -> None:
    first = build("x", recipe(*ROWS), tmp_path, packages(tmp_path), most=MOST)
    assert build("x", recipe(), tmp_path, packages(tmp_path), most=MOST) == first
    with pytest.raises(DataError, match="x: the packages give no records for the split train"):
        build("x", recipe(), tmp_path, packages(tmp_path), most={**MOST, "test": 1})
    assert len(read(tmp_path, "train")) == first["splits"]["train"]["records"]


def test_every_recipe_has_its_task_file() -> None:
    built = load_tasks([*RECIPES])
    assert [task.name for task in built] == [*RECIPES]
    asked = [task.name for task in load_tasks(["all", "closed_book", "hard"])]
    assert sorted(asked) == [*RECIPES]
    assert [task.source.directory for task in built] == [f"data/tasks/{name}" for name in RECIPES]


def test_at_least_ten_follow_from_their_input_in_five_clusters_four_generated() -> None:
    tasks = [t for t in load_tasks(["all"]) if t.answer_from == "input"]
    assert len(tasks) >= 10
    assert len({task.cluster for task in tasks}) >= 5
    assert sum(task.scoring.kind == "generate" for task in tasks) >= 4


def test_an_unknown_task_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "hypernym"]) == 2
    assert "there is no task hypernym to build: did you mean hypernyms?" in capsys.readouterr().err
