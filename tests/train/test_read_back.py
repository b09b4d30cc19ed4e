"""What is read back is believed only as far as it is checked: a table of damages."""

import shutil
from pathlib import Path

import pytest

from tests.corpora import write_tokenizer
from tests.tools.corpus.making import build, passages, write_lines
from tests.train.damages import Stage
from tests.train.runs import run

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
