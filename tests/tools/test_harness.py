"""Our tasks through lm-eval itself (`make .venv/harness/installed`): the same scores."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.tools.scores_by_entrance import PYTHON, compared
from tests.tools.test_task_scores import CHOOSING, RUN, SAYING, scored, tasks
from tools.harness.__main__ import main
from tools.harness.model import Asked, Harness, asked_of
from train.data.tokens import SpecialTokens
from train.errors import DataError
from train.scores.request import Generation
from train.scores.scorer import Scorer

__all__ = ["tasks"]


def test_without_lm_eval_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", "semicausal"]) == 2
    assert "run make .venv/harness" in capsys.readouterr().err


def test_answers_are_those_of_our_own_command(tasks: str, tmp_path: Path) -> None:
    """What lm-eval asks for is asked here as it would."""
    choosing = tasks.split(",")[0]
    scored(choosing, tmp_path)
    (path,) = (tmp_path / "scores").glob("step_*/*/choosing.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if not row["id"].endswith(":18")]  # which is cut
    harness = Harness(str(RUN))
    pairs = [
        (Asked(context=row["asked"], has_spans=True), f" {choice}")
        for row in rows
        for choice in row["choices"]
    ]
    found = iter(harness.likelihoods(pairs))
    for row in rows:
        for choice, score in zip(row["choices"], row["scores"], strict=True):
            value, _ = next(found)
            count = len(harness.tokens(f" {choice}")) - 1
            assert value / count == pytest.approx(score, abs=1e-5)


def test_a_text_is_rolled_over_token_by_token() -> None:
    """A text that has room is its likelihood behind `<s>`; a longer one is cut in windows."""
    harness = Harness(str(RUN))
    text = "the kernel maps a page"
    assert harness.rolling([text]) == pytest.approx(
        [harness.likelihoods([(Asked(context=""), text)])[0][0]]
    )
    long, longer = harness.rolling([f"{text} " * 4, f"{text} " * 8])
    assert longer < long < 0


def test_of_what_has_no_room_the_end_is_read() -> None:
    harness = Harness(str(RUN))
    most = 64
    before = "page" + " page" * (most // 2 - 1)  # of two tokens each
    assert len(harness.tokens(before)) == most + 1
    wanted = harness.rolling([f"{before} page"])[0] - harness.rolling([before])[0]
    for context in (before, f"the kernel {before}", f"{'a page ' * 200}{before}"):
        [(value, _)] = harness.likelihoods([(Asked(context=context), " page")])
        assert value == pytest.approx(wanted, abs=1e-4)
    options = {"max_gen_toks": 4}
    long, longer = harness.generated(
        [
            (Asked(context=f"maps {before}"), options),
            (Asked(context=f"[[the page]] {before}", has_spans=True), options),
        ]
    )
    assert long == longer
    for text in ("", " ", " page" * (most + 1)):
        with pytest.raises(DataError, match="tokens behind a context: it needs 1 at least"):
            harness.likelihoods([(Asked(context="the page"), text)])


def test_generates_up_to_a_stop_string() -> None:
    harness, page = Harness(str(RUN)), Asked(context="the page")
    (whole,) = harness.generated([(page, {"max_gen_toks": 8})])
    (cut,) = harness.generated([(page, {"max_gen_toks": 8, "until": [whole[2]]})])
    assert cut == whole[: whole.index(whole[2])]


def test_writes_tasks(tasks: str, tmp_path: Path) -> None:
    assert main(["tasks", tasks, "--out", str(tmp_path), "--rows", "5"]) == 0
    described = yaml.safe_load((tmp_path / "semicausal_choosing.yaml").read_text())
    assert described["output_type"] == "multiple_choice"
    rows = (tmp_path / "semicausal_choosing.jsonl").read_text().splitlines()
    assert len(rows) == 5
    assert json.loads(rows[0])["semicausal_spans"] is True
    assert set(json.loads(rows[0])) == {"id", "context", "semicausal_spans", "choices", "gold"}


def test_an_answer_has_as_many_paragraphs_as_its_stop_strings_leave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `tools.serve` answers: a paragraph's end is a line's end, and ends what one ends."""
    harness = Harness(str(RUN))
    special = SpecialTokens()
    said = [*harness.tokens("a page\n\nof memory")[1:]]
    assert special.paragraph in said
    asked: list[Generation] = []

    def ask(_: Scorer, requests: list[Generation]) -> list[list[list[int]]]:
        asked.extend(requests)
        return [[said] for _ in requests]

    monkeypatch.setattr(Scorer, "ask", ask)
    options = [{"until": ["Q:"]}, {"until": "\n"}, {"until": ["of", "\n\n"]}, {"until": ["of"]}, {}]
    found = harness.generated([(Asked(context="the page"), each) for each in options])
    two = "a page\n\nof memory"
    assert found == [two, "a page", "a page", "a page\n\n", two]
    ends = [special.paragraph in each.stop_tokens for each in asked]
    assert ends == [False, True, True, False, False]
    assert all(special.document in each.stop_tokens for each in asked)


@pytest.mark.long
@pytest.mark.skipif(not PYTHON.exists(), reason="make .venv/harness/installed")
def test_lm_eval_prints_the_same_scores(tasks: str, tmp_path: Path) -> None:
    ours = scored(tasks, tmp_path, "--rows", "18")["tasks"]
    assert main(["tasks", tasks, "--out", str(tmp_path), "--rows", "18"]) == 0
    names = "semicausal_choosing,semicausal_saying"
    subprocess.run(
        [
            *(str(PYTHON), "-m", "tools.harness", "run", "--model", "semicausal"),
            *("--model_args", f"checkpoint={RUN}", "--include_path", str(tmp_path)),
            *("--tasks", names, "--output_path", str(tmp_path / "found.json"), "--log_samples"),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        check=True,
    )
    (path,) = tmp_path.glob("found*.json")
    found = json.loads(path.read_text())["results"]
    (left,) = (tmp_path / "scores").glob("step_*/*/choosing.jsonl")
    rows = [json.loads(line) for line in left.read_text().splitlines()]
    tokens = Harness(str(RUN)).tokens
    right = 0
    for row in rows:
        sums = [
            score * (len(tokens(f" {choice}")) - 1)
            for choice, score in zip(row["choices"], row["scores"], strict=True)
        ]
        right += row["choices"][sums.index(max(sums))] == row["right"][0]
    # lm-eval's acc is of sums, ours here of means.
    assert found["semicausal_choosing"]["acc,none"] == pytest.approx(right / len(rows))
    exact = found["semicausal_saying"]["exact_match,stripped"]
    assert exact <= ours[1]["metrics"]["exact_match"] + 1e-9


@pytest.mark.long
@pytest.mark.skipif(
    # What lm-eval's local-completions asks for; environments of before lack it.
    not any(PYTHON.parents[1].glob("lib/*/site-packages/tenacity")),
    reason="rm -r .venv/harness; make .venv/harness/installed",
)
def test_lm_eval_prints_the_same_scores_whoever_answers(tmp_path: Path) -> None:
    """Ours, its own `hf` on the export, and tools.serve; texts hold what marks spans elsewhere."""
    texts = ["a [[page", "the bus\n\nof a", "a page\nmaps", "[[1, 2], [3]]\n\n[[", "\\[[it]]"]
    rows = [
        {"text": f"{text} {number}", "question": f"the {number}", "label": number % 2, "page": 0}
        for number, text in enumerate(texts * 4)
    ]
    (tmp_path / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, text in (("choosing", CHOOSING), ("saying", SAYING)):
        (tmp_path / f"{name}.yaml").write_text(text.format(directory=tmp_path))
    given = f"{tmp_path / 'choosing.yaml'},{tmp_path / 'saying.yaml'}"
    found = compared(RUN, given, out=tmp_path / "out", rows=None, batch=8)
    assert len(found) == 6
    assert {row["samples"] for row in found} == {20}
    assert all(row["answers_equal"] for row in found), found
    for first in found[:2]:
        same = [row["metrics"] for row in found if row["task"] == first["task"]]
        assert same == [first["metrics"]] * 3


def test_others_mark_no_spans() -> None:
    """`[[` in a prompt of lm-eval's own tasks is text, and ends no evaluation."""

    def of(row: object) -> Asked:
        return asked_of(SimpleNamespace(args=("a [[b", {}), doc=row))

    assert of({"context": "a [[b"}).prompt(" [[c") == r"a \[[b \[[c"
    assert of({"semicausal_spans": "yes"}) == of("a row") == of({"semicausal_spans": False})
    assert of({"semicausal_spans": True}).prompt(" [[c") == r"a [[b \[[c"
    harness = Harness(str(RUN))
    [(value, _)] = harness.likelihoods([(Asked(context="x = [[1, 2], [3"), "]]")])
    assert value < 0
    assert harness.generated([(Asked(context="[[[["), {"max_gen_toks": 2})])
