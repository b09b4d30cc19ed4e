"""Offline starts of a run become one W&B run, each step once, as often as one asks."""

import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.train.records import run_config, run_record, train_record, validation_record
from tests.train.watch.wandb_run.server import KEY, WandbServer
from tools import wandb_sync
from train.config_files import dump
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.storage.holder import Holder
from train.storage.lease import Lease
from train.storage.place import Place
from train.watch.metrics import (
    WANDB_UNREACHABLE,
    LeftOutRecord,
    MetricsFile,
    NoteRecord,
    SampleRecord,
)

RUN_ID = "5555aaaa"


def started(
    directory: Path,
    *,
    first: int,
    last: int,
    run_id: str = RUN_ID,
    mode: str | None = None,
) -> None:
    """Record a start that goes on from a step, and ends anyhow."""
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(dump(run_config(directory)))
    file = MetricsFile(directory / "metrics.jsonl")
    file.write(run_record(first).model_copy(update={"wandb_run_id": run_id, "wandb_mode": mode}))
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
    kept: list[dict[str, str]] = []
    keep = wandb_sync.Session.keep

    def seen(self: wandb_sync.Session, files: Iterable[Path]) -> None:
        files = list(files)
        kept.append({path.name: path.read_text() for path in files})
        keep(self, files)

    monkeypatch.setattr(wandb_sync.Session, "keep", seen)
    run = tmp_path / "run"
    started(run, first=0, last=12)
    started(run, first=10, last=30)
    assert wandb_sync.main([str(run)]) == ExitStatus.COMPLETE
    assert capsys.readouterr().out.startswith(f"{run}: 31 steps sent: http://127.0.0.1")
    started(run, first=30, last=33)
    (run / "report.html").write_text("<p>a report")
    assert wandb_sync.main([str(run)]) == ExitStatus.COMPLETE
    assert capsys.readouterr().out.startswith(f"{run}: 3 steps sent after step 30: http")
    rows = wandb_lab.rows(RUN_ID)
    assert [row["_step"] for row in rows] == list(range(34))
    assert [(row["step"], row["train/loss"]) for row in rows[1:] if row["step"] != 11] == [
        (step, train_record(step).loss) for step in range(1, 34) if step != 11
    ]
    assert [row["step"] for row in rows if "train/left_out" in row] == [11]
    assert rows[31]["validation/step"] == 30
    # What the run is, what the planner says of it, and the report once there is one.
    assert [set(files) for files in kept] == [
        {"config.yaml", "plan.yaml"},
        {"config.yaml", "plan.yaml", "report.html"},
    ]
    assert "\n# predicted: " in kept[0]["plan.yaml"]
    log = (wandb_lab.directory / "server.log").read_text()
    created = re.findall(rf"createArtifact: run={RUN_ID}, type=run, .*digest=(\w+)", log)
    assert len({*created}) == 2, "the server keeps nothing of them but that"
    # Nowhere is the key that let it write.
    files = [path for path in [*tmp_path.rglob("*"), *wandb_lab.directory.glob("files/**/*")]]
    assert all(KEY.encode() not in path.read_bytes() for path in files if path.is_file())


@pytest.mark.parametrize("says_that_it_is_away", [True, False])
def test_a_run_that_tells_the_server_itself_is_left_to_it(
    says_that_it_is_away: bool,
    tmp_path: Path,
    wandb_lab: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While it goes on; one that could not reach the server is sent, but for its last step."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in wandb_lab.variables.items():
        monkeypatch.setenv(name, value)
    run, run_id = tmp_path / "run", f"6666aaa{int(says_that_it_is_away)}"
    started(run, first=0, last=4, run_id=run_id, mode="online")
    file = MetricsFile(run / "metrics.jsonl")
    if says_that_it_is_away:
        file.write(NoteRecord(step=0, text=f"{WANDB_UNREACHABLE}: CommError: timed out"))
    file.close()
    with Lease(Place.of(run), instead="") as lease:
        lease.take()
        status = wandb_sync.main([str(run)])
        said = capsys.readouterr()
        if says_that_it_is_away:
            assert status == ExitStatus.COMPLETE
            assert said.out.startswith(f"{run}: 4 steps sent: ")
            return
        assert status == ExitStatus.MISTAKE
        assert said.err.startswith(f"{run} is being written, pid {os.getpid()} of ")
        assert said.err.rstrip().endswith("wait until it ends, and upload then what W&B may lack")
        assert run_id not in wandb_lab.run_ids
    assert wandb_sync.main([str(run)]) == ExitStatus.COMPLETE
    assert [row["_step"] for row in wandb_lab.rows(run_id)] == list(range(5))


@pytest.mark.parametrize("is_renewed", [True, False])
def test_a_writer_on_another_host_is_watched(is_renewed: bool, tmp_path: Path) -> None:
    """It may have died without giving its lease back."""
    (tmp_path / "run").mkdir()
    holder = Holder.of_this_process(renewed_every_seconds=0.2)
    holder = holder.model_copy(update={"host": "node9", "kernel": "another"})
    file = Place.of(tmp_path / "run/.lock.1")
    file.write(holder.model_dump_json().encode())

    def renew() -> None:
        for count in range(1, 40 if is_renewed else 1):
            file.write(holder.model_copy(update={"renewals": count}).model_dump_json().encode())
            time.sleep(0.05)

    thread = threading.Thread(target=renew)
    thread.start()
    found = wandb_sync.writer_of(RunDirectory(tmp_path / "run"))
    thread.join()
    assert (found is not None) == is_renewed


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
