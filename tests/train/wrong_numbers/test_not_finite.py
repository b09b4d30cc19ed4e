"""Steps that are not finite: left out where data break them, the end where hardware does."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import kill_at, run, start
from tests.train.wrong_numbers.injected import (
    POISON,
    STRUCK,
    broken,
    documents_of,
    sample_of,
    struck,
)
from tools import ledger
from tools.ledger import check_run
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.exit_status import ExitStatus
from train.prepare import RunState
from train.run_directory import RunDirectory
from train.watch.metrics import Metrics, read_metrics

STEPS = (
    *("steps=9", "checkpoint.every_steps=4", "validation.every_steps=5", "zero.stage=1"),
    *("batch.micro_sequences=1", "model.decoder.num_layers=2"),
)
BROKEN = 5
TENSOR = ("layout.tensor=2", "layout.sequence_parallel=true", "zero.stage=3")
STAGES = ("layout.pipeline=2",)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def poison(corpus: Path) -> dict[str, str]:
    """What breaks step 5, which the second of two data ranks reads."""
    return {POISON: json.dumps([sample_of(corpus, step=BROKEN, entry=6)])}


def recorded(metrics: Metrics) -> list[tuple[object, ...]]:
    train = [(r.step, r.loss, r.learning_rate, r.gradient_norm) for r in metrics.train]
    return [*train, *((r.step, r.loss) for r in metrics.validation)]


@pytest.mark.parametrize(
    "layout",
    [
        (),
        pytest.param(STAGES, id="stages"),
        pytest.param(TENSOR, id="tensor", marks=pytest.mark.long),
    ],
)
def test_data_are_left_out_for_good(
    layout: tuple[str, ...], corpus: Path, poison: dict[str, str], tmp_path: Path
) -> None:
    """The losses are those of a run that was told beforehand, to the bit; also after a kill."""
    options = (*STEPS, *layout)
    directory = RunDirectory(tmp_path / "run")
    found = run(corpus, directory.path, *options, ranks=2, main=broken, environment=poison)
    (note,) = [each.text for each in found.notes if "left out" in each.text]
    assert "step 5: the loss is not finite, nor is it when it is computed again" in note
    named = re.findall(r"it is from document (\d+) of corpus \(train/(\d+)\) \(data", note)
    assert len(named) == 1, note
    assert named[0][0] == named[0][1]
    assert int(named[0][0]) in documents_of(corpus, step=BROKEN, entry=6)
    assert [(each.step, each.reason) for each in found.left_out] == [(BROKEN, "not finite")]
    told = run(corpus, tmp_path / "told", *options, f"left_out=[{BROKEN}]", ranks=2)
    assert [each.step for each in told.left_out] == [BROKEN]
    assert recorded(found) == recorded(told)
    assert [record.step for record in found.train] == [1, 2, 3, 4, 6, 7, 8, 9]
    state = read_state(resolve(directory.path), RunState)
    assert [(each.step, each.reason) for each in state.left_out] == [(BROKEN, "not finite")]
    for place in (directory.path, tmp_path / "told"):
        findings = check_run(place)
        assert (findings.faults, findings.left_out, findings.steps) == ([], [BROKEN], 8)


def test_a_run_that_is_started_again_leaves_out_the_same(
    corpus: Path, poison: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a checkpoint knows of them yet or not; and without what had been wrong."""
    directory = RunDirectory(tmp_path / "run")
    attempt = start(corpus, directory.path, *STEPS, ranks=2, main=broken, environment=poison)
    kill_at(attempt, directory.path, step=6)
    again = run(corpus, directory.path, *STEPS, ranks=1)
    told = run(corpus, tmp_path / "told", *STEPS, f"left_out=[{BROKEN}]", ranks=2)
    assert [each.step for each in again.train] == [each.step for each in told.train]
    for here, there in zip(again.train, told.train, strict=True):
        assert here.loss == pytest.approx(there.loss, rel=1e-5)
    assert ledger.main(["check", str(directory.path)]) == 0
    said = capsys.readouterr().out
    assert "1 (5)" in said
    assert "every global batch was read once, in order, but for those left out" in said
    assert ledger.main(["show", str(directory.path), "--step", "5"]) == 0
    assert "step 5 is left out" in capsys.readouterr().out

    # Steps that were made stay made.
    ended = start(corpus, directory.path, *STEPS, "left_out=[4]", "steps=9").wait()
    assert ended.code == 0, "complete before anything is looked at"
    shutil.copytree(tmp_path / "told", tmp_path / "copy", ignore=shutil.ignore_patterns(".lock*"))
    copy = RunDirectory(tmp_path / "copy")
    (copy.checkpoints / "latest").write_text("step_00000004\n")
    ended = start(corpus, copy.path, *STEPS, "left_out=[3]").wait()
    assert ended.code == ExitStatus.MISTAKE
    assert "left_out: step 3 is to be left out, but the checkpoint of step 4 has made it" in (
        ended.output
    )
    copy.left_out.write_text("[{]")
    ended = start(corpus, copy.path, *STEPS, "left_out=[5]").wait()
    assert ended.code == ExitStatus.MISTAKE
    assert "left_out.json is damaged" in ended.output


def test_documents_that_break_the_loss_are_left_unscored(
    corpus: Path, poison: dict[str, str], tmp_path: Path
) -> None:
    """By the ids that the note names; padding is read in their place, and the step is made."""
    ids = [f"train/{number}" for number in documents_of(corpus, step=BROKEN, entry=6)]
    found = run(
        corpus, tmp_path / "run", *STEPS, f"data.unscored_ids={json.dumps(ids)}",
        main=broken, environment=poison,
    )  # fmt: skip
    assert [record.step for record in found.train] == list(range(1, 10))
    whole = run(corpus, tmp_path / "whole", *STEPS)
    tokens = [{r.step: r.scored_tokens for r in each.train} for each in (found, whole)]
    assert tokens[0][BROKEN] < tokens[1][BROKEN]
    assert [r.loss for r in found.train[:3]] == [r.loss for r in whole.train[:3]]
    assert check_run(tmp_path / "run").faults == []


def test_too_many_end_the_run(corpus: Path, tmp_path: Path) -> None:
    samples = [sample_of(corpus, step=step, entry=1) for step in (3, 5, 6, 7)]
    poison = {POISON: json.dumps(samples)}
    limits = "not_finite={most_in_a_row: 2, most_in_window: 9}"
    ended = start(corpus, tmp_path / "row", *STEPS, limits, main=broken, environment=poison).wait()
    assert ended.code == ExitStatus.MISTAKE
    assert "Traceback" not in ended.output
    assert "step 7: the loss is not finite, nor is it when it is computed again" in ended.output
    assert "2 steps before it were left out for that already, one after" in ended.output
    limits = "not_finite={most_in_a_row: 9, most_in_window: 2, window_steps: 4}"
    ended = start(
        corpus, tmp_path / "window", *STEPS, limits, main=broken, environment=poison
    ).wait()
    assert ended.code == ExitStatus.MISTAKE
    assert "step 6: " in ended.output
    assert "2 of the last 4 steps were left out for that already" in ended.output


@pytest.mark.parametrize(
    ("layout", "rank", "names"),
    [
        ((), 1, r"the hardware of rank 1 on \S+ errs"),
        (STAGES, 0, r"the hardware of rank 0 on \S+ or rank 1 on \S+ errs"),
        pytest.param(
            TENSOR,
            1,
            r"the hardware of rank 0 on \S+ or rank 1 on \S+ errs",
            marks=pytest.mark.long,
        ),
    ],
    ids=["data", "stages", "tensor"],
)
def test_hardware_ends_the_run_and_is_named(
    layout: tuple[str, ...], rank: int, names: str, corpus: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    ended = start(
        corpus, directory.path, *STEPS, *layout,
        ranks=2, main=struck, environment={STRUCK: json.dumps([rank, BROKEN])},
    ).wait()  # fmt: skip
    assert ended.code == ExitStatus.FAULT, ended.output
    assert "Traceback" not in ended.output
    assert f"step {BROKEN}: the loss is not finite, and it is when it is computed again" in (
        ended.output
    )
    assert re.search(names, ended.output), ended.output
    assert not directory.left_out.exists()
    assert read_metrics(directory.metrics).train[-1].step == BROKEN - 1
    undisturbed = run(corpus, tmp_path / "undisturbed", *STEPS, *layout, ranks=2)
    assert recorded(run(corpus, directory.path, *STEPS, *layout, ranks=2)) == recorded(undisturbed)
