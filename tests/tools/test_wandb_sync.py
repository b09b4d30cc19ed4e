"""Offline starts of a run become one W&B run, each step once, as often as one asks."""

from pathlib import Path

import pytest

from tests.train.records import run_config, run_record, train_record, validation_record
from tests.train.watch.wandb_run.server import KEY, WandbServer
from tools import wandb_sync
from train.config_files import dump
from train.exit_status import ExitStatus
from train.watch.metrics import LeftOutRecord, MetricsFile, SampleRecord

RUN_ID = "5555aaaa"


def started(directory: Path, *, first: int, last: int) -> None:
    """Record a start that goes on from a step, and ends anyhow."""
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(dump(run_config(directory)))
    file = MetricsFile(directory / "metrics.jsonl")
    file.write(run_record(first).model_copy(update={"wandb_run_id": RUN_ID}))
    file.write(validation_record(first))
    for step in range(first + 1, last + 1):
        file.write(train_record(step))
    file.write(SampleRecord(step=last, prompt="the", text=" kernel"))
    if first == 10:
        file.write(LeftOutRecord(step=11, reason="spike"))
    file.close()


def test_starts_become_one_run_and_what_is_there_is_not_sent_again(
    tmp_path: Path,
    wandb_lab: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in wandb_lab.variables.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    started(run, first=0, last=12)
    started(run, first=10, last=30)
    assert wandb_sync.main([str(run)]) == ExitStatus.COMPLETE
    assert capsys.readouterr().out.startswith(f"{run}: 31 steps sent: http://127.0.0.1")
    started(run, first=30, last=33)
    assert wandb_sync.main([str(run)]) == ExitStatus.COMPLETE
    assert capsys.readouterr().out.startswith(f"{run}: 3 steps sent after step 30: http")
    rows = wandb_lab.rows(RUN_ID)
    assert [row["_step"] for row in rows] == list(range(34))
    assert [(row["step"], row["train/loss"]) for row in rows[1:] if row["step"] != 11] == [
        (step, train_record(step).loss) for step in range(1, 34) if step != 11
    ]
    assert [row["step"] for row in rows if "train/left_out" in row] == [11]
    assert rows[31]["validation/step"] == 30
    # Nowhere is the key that let it write.
    files = [path for path in [*tmp_path.rglob("*"), *wandb_lab.directory.glob("files/**/*")]]
    assert all(KEY.encode() not in path.read_bytes() for path in files if path.is_file())


def test_a_server_that_is_away_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_sync, "INIT_SECONDS", 2.0)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    started(tmp_path / "run", first=0, last=3)
    assert wandb_sync.main([str(tmp_path / "run")]) == ExitStatus.MISTAKE
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}/run is not uploaded, or not all of it (")
    assert said.rstrip().endswith("then give the same command")
    assert KEY not in said


def test_who_wants_nothing_sent_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    started(tmp_path / "run", first=0, last=3)
    assert wandb_sync.main([str(tmp_path / "run")]) == ExitStatus.MISTAKE
    assert "W&B is offline here" in capsys.readouterr().err
    assert not (tmp_path / "run/wandb").exists()


def test_a_run_without_an_id_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    (tmp_path / "config.yaml").write_text(dump(run_config(tmp_path)))
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(run_record())
    file.close()
    assert wandb_sync.main([str(tmp_path)]) == ExitStatus.MISTAKE
    assert "set WANDB_RUN_ID" in capsys.readouterr().err
    (tmp_path / "wandb/offline-run-20261127_052400-abcd1234").mkdir(parents=True)
    metrics = wandb_sync.read_metrics(tmp_path / "metrics.jsonl")
    assert wandb_sync.run_id_in(tmp_path, metrics) == "abcd1234"


def test_one_id_for_several_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", RUN_ID)
    assert wandb_sync.main([str(tmp_path / "a"), str(tmp_path / "b")]) == ExitStatus.MISTAKE
    assert "WANDB_RUN_ID: names one run for all of these" in capsys.readouterr().err


def test_each_run_that_is_not_uploaded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    assert wandb_sync.main([str(tmp_path / "a"), str(tmp_path / "b")]) == ExitStatus.MISTAKE
    said = capsys.readouterr().err
    for run in "ab":
        assert f"{tmp_path}/{run}/metrics.jsonl does not exist" in said
