"""A run may be extended, and new text may come in: what was made stays as it was."""

import json
import math
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import run, start
from tools.ledger import check_run
from train.optim import OptimConfig, learning_rate
from train.run_directory import RunDirectory

TEN = ("steps=10", "optim.warmup_steps=2", "optim.schedule=cosine")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("corpora")
    return [write_corpus(root / name, seed=seed) for name, seed in (("old", 0), ("new", 7))]


def test_extended_with_the_last_rate_or_one_planned_anew(
    corpora: list[Path], tmp_path: Path
) -> None:
    """Twenty steps planned at once, and ten of them extended, are one run to the last bit."""
    planned, extended = tmp_path / "planned", tmp_path / "extended"
    twenty = ("steps=14", *TEN[1:], "optim.schedule_steps=10")
    whole = run(corpora[0], planned, *twenty)
    run(corpora[0], extended, *TEN)
    summary = RunDirectory(extended).summary
    assert json.loads(summary.read_text())["steps"] == 10
    refused = start(corpora[0], extended, "steps=14", *TEN[1:]).wait()
    assert refused.code == 2
    assert f"{extended} holds a run of 10 steps, which steps=14 extends: say what" in refused.output
    assert "optim.schedule_steps=10 goes on as planned, with the last rate after" in refused.output
    assert "optim.schedule_steps=14 plans it anew over all steps" in refused.output
    metrics = run(corpora[0], extended, *twenty)
    assert [(r.step, r.loss, r.learning_rate) for r in metrics.train] == [
        (r.step, r.loss, r.learning_rate) for r in whole.train
    ]
    assert len({record.learning_rate for record in metrics.train[9:]}) == 1
    assert "changed from step 11 on: steps: 10 there, 14 here" in metrics.notes[-1].text
    assert json.loads(summary.read_text())["steps"] == 14
    findings = check_run(extended)
    assert (findings.steps, findings.starts, findings.faults) == (14, [1, 1], [])
    # And once more, planned anew.
    anew = ("steps=16", *TEN[1:], "optim.schedule_steps=16")
    rates = [record.learning_rate for record in run(corpora[0], extended, *anew).train[14:]]
    optim = OptimConfig(lr=1e-2, warmup_steps=2, schedule="cosine")
    assert rates == [learning_rate(optim, step=step, total_steps=16) for step in (15, 16)]
    assert check_run(extended).faults == []
    for changed in ("steps=14", "steps=10"):
        shortened = start(corpora[0], extended, changed, *anew[1:]).wait()
        assert shortened.code == 2
        assert f"steps: 16 there, {changed[6:]} here" in shortened.output


def test_text_that_is_new_is_read_from_a_step_on(corpora: list[Path], tmp_path: Path) -> None:
    old, new = corpora
    directory, steps = tmp_path / "run", ("steps=8", "optim.schedule=constant")
    run(old, directory, "steps=4", *steps[1:])
    grown = start(new, directory, *steps).wait()
    assert grown.code == 2
    assert "weight_by_step: [[4, 0], [5, 1]]" in grown.output

    def mixed(**weights: object) -> list[str]:
        sources = {"corpus": {"corpus": str(old)}, "news": {"corpus": str(new)} | weights}
        return ["data.corpus=null", f"data.sources={json.dumps(sources)}", *steps]

    for weights in ({"weight": 1.0}, {"weight_by_step": [[3, 0.0], [4, 1.0]]}, {"epochs": 0.5}):
        early = start("null", directory, *mixed(**weights)).wait()
        assert early.code == 2, early.output
        assert "has made 4 steps with other shares of its sources than" in early.output
    metrics = run("null", directory, *mixed(weight_by_step=[[4, 0.0], [5, 1.0]]))
    assert "data.sources.news: None there, {'weight': None" in metrics.notes[-1].text
    findings = check_run(directory)
    assert (findings.steps, findings.faults) == (8, [])
    assert {share.name: share.entries for share in findings.shares} == {"corpus": 48, "news": 16}
    assert [share.due for share in findings.shares] == [48, 16]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_stays_at_its_last(schedule: str) -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=3, schedule=schedule, schedule_steps=10)  # type: ignore[arg-type]  # a parameter
    rates = [learning_rate(optim, step=step, total_steps=20) for step in range(1, 21)]
    before = optim.model_copy(update={"schedule_steps": None})
    assert rates[:10] == [learning_rate(before, step=step, total_steps=10) for step in range(1, 11)]
    assert set(rates[9:]) == {rates[9]}
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
