"""Tasks through the command: scores, what is left beside the run, settings that agree."""

import json
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.tools.scores_by_setting import SETTINGS, compared
from tests.train.runs import run
from tools import evaluate, task_scores

RUN = Path(__file__).parents[1] / "fixtures" / "run_7cd86b9" / "pretrained"
CHOOSING = """
name: choosing
cluster: choices
held_out: page
source: {{directory: {directory}, group: page}}
answer: {{kind: choice, choices: [yes it is, "no"], label: label}}
templates:
  - name: plain
    input: "[[{{{{ text }}}}]] {{{{ question }}}}"
  - name: inverted
    input: "Say a word for {{{{ answer }}}}:"
    inverted: "{{{{ question }}}}"
scoring: {{kind: likelihood, per: token}}
metrics: [accuracy]
demonstrations: {{split: test}}
"""
SAYING = """
name: saying
cluster: words
source: {{directory: {directory}}}
answer: {{kind: text, text: question}}
templates:
  - name: plain
    input: "[[{{{{ text }}}}]]"
scoring: {{kind: generate, max_new_tokens: 4}}
metrics: [f1, exact_match, rouge, bleu]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("tasks")
    words = ["the", "kernel", "maps", "a", "page", "of", "memory", "when", "the", "driver", "asks"]
    rows = [
        {
            "text": " ".join(words[number % 5 : number % 5 + 1 + number % 3]),
            "question": words[(3 * number) % len(words)],
            "label": number % 2,
            "page": number // 3,
        }
        for number in range(18)
    ]
    # One whose span is cut, and one that has no room at all.
    rows.append({"text": "the page " * 30, "question": "driver", "label": 0, "page": 98})
    rows.append({"text": "the page " * 9, "question": "asks " * 60, "label": 0, "page": 99})
    (root / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, text in (("choosing", CHOOSING), ("saying", SAYING)):
        (root / f"{name}.yaml").write_text(text.format(directory=root))
    return f"{root / 'choosing.yaml'},{root / 'saying.yaml'}"


def scored(tasks: str, out: Path, *arguments: str) -> dict[str, Any]:
    given = [str(RUN), "--tasks", tasks, "--scores", str(out / "scores"), "--leave-out-long"]
    assert evaluate.main([*given, "--out", str(out / "out.json"), *arguments]) == 0
    return json.loads((out / "out.json").read_text())


def test_scores_and_what_is_left(
    tasks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(tasks, tmp_path)
    choosing, saying = found["tasks"]
    assert (choosing["rows"], choosing["groups"], choosing["left_out"]) == (19, 7, 1)
    assert (choosing["cut"], saying["cut"], saying["rows"]) == (1, 1, 20)
    assert choosing["interval"][0] <= choosing["score"] <= choosing["interval"][1]
    assert set(saying["metrics"]) == {"f1", "exact_match", "rouge", "bleu"}
    (left,) = (tmp_path / "scores").glob("step_*/test-template-0")
    rows = [json.loads(line) for line in (left / "choosing.jsonl").read_text().splitlines()]
    assert len(rows) == 19
    for row in rows:
        best = max(range(2), key=lambda place: row["scores"][place])
        assert row["tied"] or row["answer"] == row["choices"][best]
    right = [row["answer"] == row["right"][0] for row in rows]
    assert choosing["score"] == pytest.approx(sum(right) / 19)
    page = (left / "scores.html").read_text()
    assert "choosing" in page
    assert "[[" in page
    assert "19 rows" in page
    assert "choosing" in capsys.readouterr().out

    again = scored(tasks, tmp_path)
    chosen, said = (_different(left / f"{name}.jsonl") for name in ("choosing", "saying"))
    assert found["computed"] == 2 * chosen + said
    assert again["computed"] == 0
    assert again["tasks"] == found["tasks"]


def _different(predictions: Path) -> int:
    """Contexts, each of which is asked once."""
    lines = predictions.read_text().splitlines()
    return len({json.loads(line)["asked"] for line in lines})


def test_how_far_it_is_can_be_told_meanwhile(
    tasks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    @contextmanager
    def now_and_then(console: Console, line: Callable[[], str]) -> Generator[None]:
        told.append(line())
        yield
        told.append(line())

    monkeypatch.setattr(task_scores, "now_and_then", now_and_then)
    found = scored(tasks, tmp_path, "--controls")
    begun, middle, other, end = told
    assert begun == "choosing: 0 of 0 answers"
    plain = middle.removeprefix("saying: ")
    assert other == f"choosing: {plain} (test-template-0-shuffled)"
    assert (
        end
        == f"saying: {found['computed']} of {found['computed']} answers (test-template-0-shuffled)"
    )


def test_against_a_baseline_and_shuffled(tasks: str, tmp_path: Path) -> None:
    plain = scored(tasks, tmp_path)
    (left,) = (tmp_path / "scores").glob("step_*/test-template-0")
    own = scored(tasks, tmp_path, "--baseline", str(left))
    for row in own["tasks"]:
        assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, None, None)
    shuffled = scored(tasks, tmp_path, "--shuffled")
    assert shuffled["setting"] != plain["setting"]
    assert [row["rows"] for row in shuffled["tasks"]] == [row["rows"] for row in plain["tasks"]]


def test_controls_are_asked_too_and_paired_with_the_score(
    tasks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tasks.split(",")[0]
    [found] = scored(name, tmp_path, "--rows", "18", "--controls")["tasks"]
    assert re.search(r"^choosing: .* above shuffled$", capsys.readouterr().out, re.MULTILINE)
    again = scored(name, tmp_path, "--rows", "18", "--shuffled")
    assert again["computed"] == 0
    [shuffled] = again["tasks"]
    assert "shuffled" not in shuffled
    assert found["shuffled"] == shuffled["score"]
    above = found["above_shuffled"]["difference"]
    assert above == pytest.approx(found["score"] - shuffled["score"])
    assert "blind" not in found, "its rows show no item that could be left out"
    assert found["held_out"] == "page"


def test_controls_are_not_mixed_with_others(tasks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(RUN), "--tasks", tasks, "--controls", "--blind"]) == 2
    assert "--controls: asks --blind and --shuffled itself" in capsys.readouterr().err


def test_demonstrations_stand_before_each_row(tasks: str, tmp_path: Path) -> None:
    found = scored(tasks.split(",")[0], tmp_path, "--demonstrations", "1")
    assert found["setting"] == "test-template-0-1-shot"
    (path,) = (tmp_path / "scores").glob("step_*/*/choosing.jsonl")
    for line in path.read_text().splitlines():
        demonstration, row = json.loads(line)["asked"].split("\n\n")
        assert demonstration.startswith("[[")
        assert demonstration.endswith(("yes it is", "no"))
        assert row.startswith("[[")


def test_a_template_that_asks_for_something_else_is_not_evaluated(
    tasks: str, tmp_path: Path
) -> None:
    plain, other = (scored(tasks, tmp_path, "--template", number) for number in "01")
    assert other["setting"] == "test-template-1"
    assert other["tasks"] == plain["tasks"]


def test_rows_without_room_are_refused_by_name(
    tasks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(RUN), "--tasks", tasks, "--scores", str(tmp_path / "s")]
    assert evaluate.main([*given, "--out", str(tmp_path / "o.json")]) == 2
    told = capsys.readouterr().err
    assert "choosing/test:19: what is asked" in told
    assert "--leave-out-long" in told


def test_a_baseline_that_was_not_scored_is_told(
    tasks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(RUN), "--tasks", tasks, "--scores", str(tmp_path / "s"), "--leave-out-long"]
    other = ["--baseline", str(RUN), "--out", str(tmp_path / "o.json")]
    assert evaluate.main([*given, *other]) == 2
    assert "evaluate that run first" in capsys.readouterr().err
    assert not (tmp_path / "s").exists(), "told before anything is asked"
    baseline = tmp_path / "baseline"
    baseline.mkdir()
    for task in ("choosing", "saying"):
        (baseline / f"{task}.jsonl").touch()
    other[1] = str(baseline)
    assert evaluate.main([*given, *other]) == 2
    assert "the baseline has answered no row of choosing" in capsys.readouterr().err


@pytest.mark.long
def test_every_setting_gives_the_same(tasks: str, tmp_path: Path) -> None:
    # Of two layers, one a stage.
    run(RUN.parent / "documents", tmp_path / "run", "steps=2", "data.pack=fit")
    rows = compared(tmp_path / "run", tasks, out=tmp_path, arguments=["--leave-out-long"])
    assert len(rows) == 2 * (len(SETTINGS) + 1)
    assert all(row["answers_equal"] for row in rows)
    assert max(row["log_likelihood_difference"] for row in rows) < 1e-4
