"""A planted document is named, with its steps, and nothing else is."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.corpora import VOCABULARY, write_splits, write_tokenizer
from tests.train.runs import run
from tools import contamination as tool
from train.build import build_plan
from train.claim import stored_config
from train.data.ledger import read_ledger
from train.run_directory import RunDirectory
from train.scores.contamination import contamination, runs_of, texts, words
from train.tasks.reader import TaskReader
from train.tasks.task import load_tasks

WORDS = [f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in "mnrst"]
PLANTED = 17
CHINESE = 20
SIGNS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜"


def _text(of: random.Random, count: int) -> str:
    return " ".join(of.choice(WORDS) for _ in range(count))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a task one of whose rows is in a document, and a run that has read it twice."""
    root = tmp_path_factory.mktemp("world")
    of = random.Random(0)
    rows: list[dict[str, Any]] = [
        {
            "question": _text(of, 30),
            "notes": [{"short": _text(of, 6)}],
            "answer": of.choice(WORDS),
        }
        for _ in range(12)
    ]
    for _ in range(2):
        rows.append({"question": "".join(of.choice(SIGNS) for _ in range(40)), "answer": "x"})
    # A short text of one paragraph alone, as titles are.
    rows.append({"question": _text(of, 5), "answer": "x"})
    (root / "task").mkdir()
    (root / "task" / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (root / "task.yaml").write_text(
        f"""
name: planted
cluster: questions
source: {{directory: {root / "task"}}}
columns: {{asked: "'once more: ' ~ question"}}
answer: {{kind: text, text: answer}}
templates:
  - name: plain
    input: "{_text(of, 15)} {{{{ question }}}}"
scoring: {{kind: generate}}
metrics: [f1]
"""
    )
    write_tokenizer(root / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, count in (("train", 48), ("validation", 4)):
        documents = splits[split] = []
        for number in range(count):
            text = _text(of, 25)
            if split == "train" and number == PLANTED:
                # In other case, with other signs, in the midst of something else.
                part = rows[3]["question"].upper().replace(" ", ", ")
                text = f"{_text(of, 4)}\n{part}! {_text(of, 4)}"
            if split == "train" and number == PLANTED + 1:
                # Too few of the words in a row, and another row's short text but for a word.
                text = " ".join(rows[5]["question"].split()[:12])
                text += f" ; {' '.join(rows[6]['notes'][0]['short'].split()[:5])}"
            if split == "train" and number == CHINESE:
                text = f"文{rows[12]['question'][:20]}，{rows[12]['question'][20:]}。文"
            if split == "train" and number == CHINESE + 1:
                text = f"{rows[13]['question'][:25]}文{rows[13]['question'][26:30]}"
            parts = [text]
            if split == "train" and number == CHINESE + 2:
                parts = [_text(of, 3), rows[14]["question"], _text(of, 3)]
            ids = [each for part in parts for each in (*tokenizer.encode(part).ids, 1)]
            tokens = np.array([*ids[:-1], 2], dtype=np.uint16)
            documents.append(
                {
                    "id": f"{split}/{number}",
                    "tokens": tokens,
                    "segments": np.array([[0, len(tokens), 1]], dtype=np.int32),
                }
            )
    write_splits(root / "corpus", splits, shard_bytes=8192)
    return root


@pytest.fixture(scope="module")
def read(world: Path) -> Path:
    run(
        world / "corpus",
        world / "run",
        *("steps=12", "batch.sequences=4", "data.pack=fit", "data.sequence_tokens=256"),
        *("model.decoder.max_tokens=256", f"model.decoder.vocabulary={VOCABULARY}"),
        *("validation.sequences=1", "checkpoint.every_steps=12"),
    )
    return world / "run"


def test_names_the_planted_document_its_steps_and_nothing_else(
    world: Path, read: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tool.look(read, str(world / "task.yaml"))
    assert found.rows == 15
    assert [(each.row, each.document) for each in found.overlaps] == [
        ("planted/test:3", f"train/{PLANTED}"),
        ("planted/test:12", f"train/{CHINESE}"),
        ("planted/test:14", f"train/{CHINESE + 2}"),
    ]
    overlap = found.overlaps[0]
    assert overlap.number == PLANTED
    # All runs of the question, of a row that has one text more; what the task makes of it is none.
    assert overlap.share == pytest.approx(18 / 19)
    steps = _steps_by_hand(read)
    assert overlap.steps == steps
    assert len(steps) >= 2
    out = world / "found.json"
    assert tool.main([str(read), str(world / "task.yaml"), "--out", str(out)]) == 1
    assert json.loads(out.read_text()) == json.loads(json.dumps(asdict(found)))
    assert f"train/{PLANTED}" in capsys.readouterr().out


def _steps_by_hand(directory: Path) -> list[int]:
    """At which the planted document was read, whole."""
    return sorted(
        {
            record.step
            for ranks in read_ledger(directory / "ledger").values()
            for _, records in ranks.values()
            for record in records
            if record.identities is not None and PLANTED in record.identities[:, 3]
        }
    )


def test_a_run_that_has_not_read_it_is_clean(world: Path, read: Path) -> None:
    """Although its corpus holds it: without the steps that read it, nothing is found."""
    directory = RunDirectory(read)
    ledger, without = read_ledger(directory.ledger), _steps_by_hand(read)
    for ranks in ledger.values():
        for _, records in ranks.values():
            records[:] = [record for record in records if record.step not in without]
    plan = build_plan(stored_config(directory))
    rows = [(str(row.number), row.values) for row in _reader(world).records("test")]
    tokenizer = Tokenizer.from_file(str(world / "tokenizer.json"))
    found = contamination(rows, ledger, plan, tokenizer)
    assert found.steps == 12 - len(without) > 0
    assert PLANTED not in {each.number for each in found.overlaps}


def _reader(world: Path) -> TaskReader:
    return TaskReader(load_tasks([str(world / "task.yaml")])[0])


def test_texts_of_a_row() -> None:
    values = {"a": "One two", "b": ["three", {"c": "four"}], "n": 5, "none": None}
    assert [*texts(values)] == ["One two", "three", "four"]
    assert words("Don't, STOP—now!") == ["don", "t", "stop", "now"]
    assert [*runs_of(["a"] * 4)] == []
    assert [*runs_of(["a"] * 5)] == [("a",) * 5]
    assert len([*runs_of(["a"] * 20)]) == 8
    assert words("C的ＡＢ页。หน้า") == ["c", "的", "ab", "页", *"หน้า"]
    assert [*runs_of(["页"] * 9)] == []
    assert [*runs_of(["页"] * 10)] == [("页",) * 10]
    assert [len(run) for run in runs_of([*["页"] * 8, *["a"] * 9, "b"])] == [17, 17, 16]
