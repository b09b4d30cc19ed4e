"""Tasks that a model is asked while it trains: training does not notice, and the scores hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import WORDS, write_corpus
from tests.train.runs import run, start
from tests.train.tasks.making import SENSES, written
from tools.evaluate import main as evaluate
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.metrics import Metrics, read_metrics

NAMED = """\
name: named
cluster: reading
source: {directory: DIRECTORY}
answer: {kind: text, text: word}
templates:
  - {name: first, input: "[[{{ premise }}]] "}
scoring: {kind: generate, max_new_tokens: 4}
metrics: [f1]
"""
ROWS: list[dict[str, Any]] = [
    {
        "premise": " ".join(WORDS.split()[n : n + 3]),
        "hypothesis": word,
        "label": n % 2,
        "word": word,
    }
    for n, word in enumerate(WORDS.split()[:9])
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One of choices, one of free answers."""
    directory = written(tmp_path_factory.mktemp("tasks"), *ROWS, split="validation")
    files: list[str] = []
    for name, text in (("senses", SENSES), ("named", NAMED)):
        file = directory / f"{name}.yaml"
        file.write_text(text.replace("DIRECTORY", str(directory)))
        files.append(str(file))
    return files


def asked(tasks: list[str], **more: object) -> str:
    return f"evaluation={json.dumps({'tasks': tasks, 'every_steps': 2, 'batch': 4, **more})}"


def curve(metrics: Metrics) -> list[tuple[object, ...]]:
    train = [(r.step, r.loss, r.gradient_norm, r.scored_tokens) for r in metrics.train]
    return [*train, *((r.step, r.loss) for r in metrics.validation)]


def compare(
    corpus: Path, tasks: list[str], tmp_path: Path, *layout: str, ranks: int, steps: int
) -> None:
    """With and without: one curve; and what was said of the last step is said of its checkpoint."""
    given = (*layout, f"steps={steps}", "zero.stage=3", "model.decoder.dropout=0.1")
    without = run(corpus, tmp_path / "without", *given, ranks=ranks)
    found = run(corpus, tmp_path / "with", *given, asked(tasks, rows=7), ranks=ranks)
    assert curve(found) == curve(without)
    assert without.scores == []
    wanted = [(step, name) for step in range(0, steps + 1, 2) for name in ("senses", "named")]
    assert [(record.step, record.task) for record in found.scores] == wanted
    assert {record.rows for record in found.scores} == {7}
    out = tmp_path / "scores.json"
    options = ["--tasks", ",".join(tasks), "--split", "validation", "--rows", "7"]
    assert evaluate([str(tmp_path / "with"), *options, "--out", str(out)]) == 0
    told = {row["task"]: row["score"] for row in json.loads(out.read_text())["tasks"]}
    assert {record.task: record.score for record in found.scores[-2:]} == pytest.approx(told)


def test_training_does_not_notice_and_the_scores_are_those_of_the_checkpoint(
    corpus: Path, tasks: list[str], tmp_path: Path
) -> None:
    compare(corpus, tasks, tmp_path, ranks=2, steps=4)
    report = RunDirectory(tmp_path / "with").report.read_text()
    assert "Scores of tasks" in report


@pytest.mark.long
@pytest.mark.parametrize(
    "layout",
    [
        ("layout={tensor: 2}",),
        ("layout={tensor: 2, sequence_parallel: true}",),
        ("layout={pipeline: 2}",),
        ("layout={pipeline: 2, chunks: 2}", "model.decoder.num_layers=4"),
    ],
    ids=["tp2", "tp2+sp", "pp2", "interleaved"],
)
def test_in_every_layout(
    corpus: Path, tasks: list[str], tmp_path: Path, layout: tuple[str, ...]
) -> None:
    compare(corpus, tasks, tmp_path, *layout, ranks=2, steps=4)


def test_what_is_wrong_is_told_before_the_first_step(
    corpus: Path, tasks: list[str], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    for evaluation, told in (
        (asked(["capitols", "hypernym"]), ("no task capitols in", "did you mean hypernyms?")),
        (asked(tasks, split="test"), ("holds no split test",)),
    ):
        ended = start(corpus, directory, evaluation).wait()
        assert ended.code == ExitStatus.MISTAKE
        assert all(each in ended.output for each in told), ended.output
        assert not directory.exists()


def test_records_of_several_tasks_stay_apart(tmp_path: Path) -> None:
    lines = [
        {"kind": "score", "step": 2, "task": task, "metric": "f1", "score": score,
         "standard_error": None, "rows": 3, "seconds": 0.1}
        for task, score in (("a", 0.1), ("b", 0.2), ("a", 0.3))
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_metrics(tmp_path / "metrics.jsonl").scores
    assert [(record.task, record.score) for record in found] == [("a", 0.3), ("b", 0.2)]
