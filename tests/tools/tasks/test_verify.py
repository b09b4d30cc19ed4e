"""Whether training tells what test asks."""

import json
from pathlib import Path

import pytest

from tests.tools.tasks.making import packages
from tests.train.tasks.making import ROW, task
from tools.tasks.__main__ import main
from tools.tasks.build import Recipe, build
from tools.tasks.recipes import RECIPES
from tools.tasks.verify import faults
from train.tasks.reader import TaskReader

ROWS = [{**ROW, "unit": f"{n}", "premise": f"{n}."} for n in range(60)]


@pytest.fixture
def reader(tmp_path: Path) -> TaskReader:
    most = {"train": 100, "validation": 100, "test": 100}
    recipe = Recipe(make=lambda _: iter(ROWS), unit="word")
    build("senses", recipe, tmp_path, packages(tmp_path), most=most)  # pyright: ignore[reportArgumentType]
    return TaskReader(task(tmp_path), directory=tmp_path / "senses")


def add(reader: TaskReader, split: str, **changes: str) -> None:
    """Put a record of training into another split."""
    file = reader.directory / f"{split}.jsonl"
    row = json.loads((reader.directory / "train.jsonl").read_text().splitlines()[0])
    file.write_text(file.read_text() + json.dumps({**row, **changes}) + "\n")


def test_what_was_built_is_sound(reader: TaskReader) -> None:
    assert [*faults(reader)] == []


def test_a_unit_in_two_splits(reader: TaskReader) -> None:
    add(reader, "test", premise="Another.")
    changed, shared = faults(reader)
    assert "test.jsonl is not what was built: build it again" in changed
    assert "test.jsonl:" in shared
    assert shared.endswith("is in train too")
    assert "the word '" in shared


def test_the_same_question_in_two_splits(reader: TaskReader) -> None:
    add(reader, "validation", unit="another")
    _, asked = faults(reader)
    assert asked.endswith("the same is asked in train")


def test_a_task_that_was_not_built(reader: TaskReader) -> None:
    (reader.directory / "manifest.json").unlink()
    [found] = faults(reader)
    assert "has no manifest.json: build it again" in found


@pytest.mark.network
@pytest.mark.long
def test_the_real_tasks_are_built_and_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path)]
    assert main(["build", *arguments, "--records", "2000", "--held-out", "200"]) == 0
    capsys.readouterr()
    assert main(["verify", *arguments]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: sound" for name in RECIPES]
