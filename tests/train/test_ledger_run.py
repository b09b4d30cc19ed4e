"""Runs that mix documents, on changing numbers of ranks, and what their ledgers prove."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.corpora import write_documents
from tests.train.runs import kill_at, run, start
from tools.ledger import check_run, main
from train.data.ledger import read_ledger
from train.run_directory import RunDirectory
from train.watch.metrics import Metrics, read_metrics

STEPS = 14


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("mixed")
    long = write_documents(root / "long", mean_tokens=60, seed=1)
    short = write_documents(root / "short", mean_tokens=15, seed=2)
    sources = {
        "long": {"corpus": str(long), "weight_by_step": [[1, 3.0], [STEPS, 1.0]]},
        "short": {"corpus": str(short), "weight": 1.0},
    }
    return [
        f"data.sources={yaml.safe_dump(sources, default_flow_style=True, width=10_000).strip()}",
        *(
            "data.corpus=null",
            "data.pack=fit",
            "data.shuffle_window=50",
            f"steps={STEPS}",
            "batch.sequences=8",
        ),
        *("batch.micro_sequences=1", "checkpoint.every_steps=2", "validation.every_steps=100"),
    ]


@pytest.fixture(scope="module")
def whole(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return directory, run("null", directory, *overrides, ranks=2)


@pytest.fixture(scope="module")
def elastic(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    """1 → 2 → 4 → 2 ranks, killed at steps that are no checkpoint's."""
    directory = tmp_path_factory.mktemp("runs") / "elastic"
    for ranks, step in ((1, 3), (2, 5), (4, 9)):
        kill_at(start("null", directory, *overrides, ranks=ranks), directory, step=step)
    return directory, run("null", directory, *overrides, ranks=2)


def read_steps(directory: Path) -> dict[int, np.ndarray]:
    """What each step was made of, by the last start that made it."""
    steps: dict[int, list[Any]] = {}
    for _, ranks in sorted(read_ledger(RunDirectory(directory).ledger).items()):
        first = min(start.first_step for start, _ in ranks.values())
        steps = {step: found for step, found in steps.items() if step <= first}
        for _, records in ranks.values():
            for record in records:
                steps.setdefault(record.step, []).append(record)
    return {
        step: np.concatenate([r.identities for r in sorted(found, key=lambda r: r.first)])
        for step, found in steps.items()
    }


def test_other_numbers_of_ranks_read_the_same_in_the_same_order(
    whole: tuple[Path, Metrics], elastic: tuple[Path, Metrics]
) -> None:
    expected, found = read_steps(whole[0]), read_steps(elastic[0])
    assert sorted(expected) == sorted(found) == list(range(1, STEPS + 1))
    for step in expected:
        np.testing.assert_array_equal(found[step], expected[step])
    losses = {record.step: record.loss for record in whole[1].train}
    for record in elastic[1].train:
        assert record.loss == pytest.approx(losses[record.step], rel=1e-5)


def test_the_ledger_proves_it(
    whole: tuple[Path, Metrics], elastic: tuple[Path, Metrics], capsys: pytest.CaptureFixture[str]
) -> None:
    findings = check_run(whole[0])
    assert (findings.starts, findings.steps_again, findings.faults) == ([2], 0, [])
    assert main(["check", str(elastic[0])]) == 0
    assert "every global batch was read once, in order" in capsys.readouterr().out
    findings = check_run(elastic[0])
    assert findings.starts == [1, 2, 4, 2]
    assert (findings.steps, findings.entries) == (STEPS, 8 * STEPS)
    assert findings.steps_again > 0
    assert (findings.entries_lost, findings.entries_repeated, findings.faults) == (0, 0, [])
    for share in findings.shares:
        assert share.entries == pytest.approx(share.due, abs=1)
    assert [share.name for share in findings.shares] == ["long", "short"]


def test_a_step_can_be_looked_at(
    elastic: tuple[Path, Metrics], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(elastic[0]), "--step", "5"]) == 0
    shown = capsys.readouterr().out
    assert "long" in shown
    assert "short" in shown
    assert main(["show", str(elastic[0]), "--step", "99"]) == 2
    assert "no record of step 99" in capsys.readouterr().err


def copy(elastic: tuple[Path, Metrics], to: Path) -> list[Path]:
    shutil.copytree(elastic[0], to, ignore=shutil.ignore_patterns(".lock*"))
    return sorted(RunDirectory(to).ledger.glob("*.bin"))


def test_a_changed_ledger_is_caught(
    elastic: tuple[Path, Metrics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = copy(elastic, tmp_path / "run")
    content = bytearray(files[-1].read_bytes())
    content[len(content) // 2] ^= 1
    files[-1].write_bytes(bytes(content))
    assert main(["check", str(tmp_path / "run")]) == 2
    assert "was changed after it was written" in capsys.readouterr().err


def test_a_batch_left_out_is_caught(elastic: tuple[Path, Metrics], tmp_path: Path) -> None:
    files = copy(elastic, tmp_path / "run")
    files[-1].unlink()  # what the second rank of the last start has read
    findings = check_run(tmp_path / "run")
    assert findings.entries_lost > 0
    assert findings.faults


def test_records_of_another_run_are_caught(
    whole: tuple[Path, Metrics], elastic: tuple[Path, Metrics], tmp_path: Path
) -> None:
    """A ledger that is sound in itself, but of another seed."""
    copy(elastic, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1\n", "seed: 2\n"))
    findings = check_run(tmp_path / "run")
    assert findings.entries_lost == 8 * STEPS
    assert any("not read as planned: entry" in fault for fault in findings.faults)


def test_digests_are_enough(
    overrides: list[str], whole: tuple[Path, Metrics], tmp_path: Path
) -> None:
    run("null", tmp_path / "run", *overrides, "data.ledger_mib=0.0001", ranks=1)
    records = read_ledger(RunDirectory(tmp_path / "run").ledger)[1][0][1]
    assert records[-1].identities is None
    findings = check_run(tmp_path / "run")
    assert (findings.steps, findings.entries_lost, findings.faults) == (STEPS, 0, [])
    changed = tmp_path / "run" / "config.yaml"
    changed.write_text(changed.read_text().replace("shuffle_window: 50", "shuffle_window: 60"))
    assert check_run(tmp_path / "run").entries_lost > 0


def test_validation_is_told_by_source(whole: tuple[Path, Metrics]) -> None:
    first = whole[1].validation[0]
    assert first.by_source is not None
    assert set(first.by_source) == {"long", "short"}
    low, high = sorted(first.by_source.values())
    assert low <= first.loss <= high
    assert low < high


def test_training_is_told_by_source(
    whole: tuple[Path, Metrics], elastic: tuple[Path, Metrics]
) -> None:
    """Whatever the number of ranks; the sources' losses are parts of the whole one."""
    for alone, shared in zip(whole[1].train, elastic[1].train, strict=True):
        assert alone.by_source is not None
        assert shared.by_source == pytest.approx(alone.by_source, rel=1e-5)
        low, high = min(alone.by_source.values()), max(alone.by_source.values())
        assert low * (1 - 1e-9) <= alone.loss <= high * (1 + 1e-9)
    named = [set(record.by_source or {}) for record in whole[1].train]
    assert {"long", "short"} in named


def test_other_packing_is_refused_on_resume(
    overrides: list[str], elastic: tuple[Path, Metrics]
) -> None:
    for change in ("data.attend=within", "data.shuffle_window=51", "data.span_choices=2"):
        ended = start("null", elastic[0], *overrides, change).wait()
        assert ended.code == 2
        assert change.split("=")[0] in ended.output


def test_a_stopped_run_goes_on_with_other_microbatches(
    overrides: list[str], whole: tuple[Path, Metrics], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    begun = start("null", directory, *overrides, ranks=2)
    while (
        not RunDirectory(directory).metrics.exists()
        or not read_metrics(RunDirectory(directory).metrics).train
    ):
        pass
    begun.signal(signal.SIGTERM)
    assert begun.wait().code in (0, 75)
    run("null", directory, *overrides, "batch.micro_sequences=4", ranks=1)
    for step, found in read_steps(directory).items():
        np.testing.assert_array_equal(found, read_steps(whole[0])[step])
