"""W&B's service dies of what kills a job's processes; the rows that it had taken do not."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.train.records import run_config, train_record
from tests.train.watch.wandb_run.offline import history
from tests.train.watch.wandb_run.server import WandbServer
from train.watch.metrics import LeftOutRecord, MetricsFile
from train.watch.wandb_run import writer as wandb_writer
from train.watch.wandb_run.session import service_lives
from train.watch.wandb_run.writer import WandbWriter


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_writer, "INIT_SECONDS", 60.0)
    monkeypatch.setattr(wandb_writer, "FINISH_SECONDS", 120.0)


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def wait_until_open(directory: Path) -> None:
    """Until a service has written the beginning of its file."""
    deadline = time.monotonic() + 120
    while not any(file.stat().st_size for file in directory.glob("wandb/*run-*/*.wandb")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def losses(rows: list[dict]) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def expected(last: int) -> list[tuple[int, float]]:
    return [(step, train_record(step).loss) for step in range(1, last + 1)]


@pytest.mark.parametrize("of", ["the session of the ranks", "all that descends from them"])
def test_sigterm_loses_no_row(tmp_path: Path, of: str) -> None:
    others = descendants()
    writer = WandbWriter(
        run_config(tmp_path, "watch.wandb=offline"), run_id="12345678", mode="offline"
    )
    for step in range(1, 61):
        writer.write(train_record(step))
    wait_until_open(tmp_path)
    deadline = time.monotonic() + 120
    while not writer._queue.empty():  # the service has taken what it has not written yet
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ours = descendants() - others
    assert any(process.name() == "wandb-core" for process in ours)
    if of == "the session of the ranks":
        ours = {process for process in ours if os.getsid(process.pid) == os.getsid(0)}
    for process in ours:
        process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert service_lives() is (of == "the session of the ranks")
    for step in range(61, 101):
        writer.write(train_record(step))
    writer.finish()
    notes = writer.take_notes()
    assert losses(history(tmp_path)) == expected(100)
    if of == "the session of the ranks":
        assert notes == []
        assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    else:
        assert [note.split(" (")[0] for note in notes] == ["W&B's service has died"]


def test_a_run_that_is_killed_goes_on_as_one(
    tmp_path: Path, wandb_lab: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has more than the checkpoint, or less: each step comes once."""
    for name, value in wandb_lab.variables.items():
        monkeypatch.setenv(name, value)
    config = run_config(tmp_path, "watch.wandb=online")
    file = MetricsFile(tmp_path / "metrics.jsonl")
    # First and last step of each start, and the last that the server gets of it.
    for first, last, sent in ((0, 20, 20), (10, 25, 22), (25, 40, 40)):
        writer = WandbWriter(config, run_id="87654321", mode="online", first_step=first)
        for step in range(first + 1, last + 1):
            file.write(train_record(step))
            if step <= sent:
                writer.write(train_record(step))
        writer.finish()
        assert writer.take_notes() == []
    file.close()
    rows = wandb_lab.rows("87654321")
    assert losses(rows) == expected(40)
    assert [row["_step"] for row in rows] == list(range(1, 41))


def test_online_sigterm_loses_no_row(
    tmp_path: Path, wandb_lab: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in wandb_lab.variables.items():
        monkeypatch.setenv(name, value)
    config = run_config(tmp_path, "watch.wandb=online")
    writer = WandbWriter(config, run_id="11223344", mode="online")
    for step in range(1, 31):
        writer.write(train_record(step))
    wait_until_open(tmp_path)
    for child in psutil.Process().children():
        if child.name() == "wandb-core":
            child.terminate()
    time.sleep(0.5)
    for step in range(31, 51):
        writer.write(train_record(step))
    writer.write(LeftOutRecord(step=51, reason="spike"))
    writer.finish()
    assert [note.split(" (")[0] for note in writer.take_notes()] == ["W&B's service has died"]
    rows = wandb_lab.rows("11223344")
    assert losses(rows) == expected(50)
    assert (rows[-1]["_step"], rows[-1]["train/left_out"]) == (51, 51)
    assert wandb_lab.alerts("11223344") == [("step 51 is left out", "spike")]
