"""What is read back is believed only as far as it is checked: a table of damages."""

import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.corpora import write_tokenizer
from tests.tools.corpus.making import build, passages, write_lines
from tests.train.damages import READERS, Damage, Stage, damages, field_damages
from tests.train.runs import run

WHOLE_PARTS, FIELD_PARTS = 20, 150
"""Of the tables, so many parts, of which `make test` does the first."""
MORE_PARTS = 10
"""As many of the other does `make test-all`: all would take a quarter of an hour."""
OLD = Path(__file__).parents[1] / "fixtures" / "run_7cd86b9"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    root = tmp_path_factory.mktemp("whole")
    write_tokenizer(root / "tokenizer.json")
    rows = write_lines(root / "rows.jsonl", ({"text": text} for text in passages(200)))
    build(rows, out=root / "corpus", tokenizer=root / "tokenizer.json")
    run(root / "corpus", root / "run", "data.pack=fit")
    shutil.copytree(OLD / "finetuned", root / "lora")
    return Stage(root, tmp_path_factory.mktemp("damaged"))


def _faults(stage: Stage, cases: list[tuple[Damage, str]]) -> list[str]:
    return [told for damage, command in cases if (told := stage.fault(damage, command))]


def _cases(damages: Iterable[Damage]) -> list[tuple[Damage, str]]:
    found = [(damage, command) for damage in damages for command in READERS[damage.file]]
    random.Random(0).shuffle(found)
    return found


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, WHOLE_PARTS))]
)
def test_a_damaged_file_is_named_or_changes_nothing(stage: Stage, part: int) -> None:
    assert not _faults(stage, _cases(damages())[part::WHOLE_PARTS])


@pytest.mark.parametrize(
    "part",
    [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, MORE_PARTS))],
)
def test_a_damaged_field_is_named_or_changes_nothing(stage: Stage, part: int) -> None:
    assert not _faults(stage, _cases(field_damages(stage.whole))[part::FIELD_PARTS])
