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
from train.watch.metrics import LeftOutRecord, MetricsFile, SampleRecord
from train.watch.wandb_run import session
from train.watch.wandb_run import writer as wandb_writer
from train.watch.wandb_run.session import describe, last_step_of, service_lives
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


@pytest.mark.parametrize("size", [700, 90_000])
def test_the_end_of_a_file_tells_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """However long it is, and wherever the end begins: in the middle of a record, too."""
    steps = 40 if size == 700 else 8
    writer = WandbWriter(
        run_config(tmp_path, "watch.wandb=offline"), run_id="12345678", mode="offline"
    )
    for step in range(1, steps + 1):
        writer.write(train_record(step))
        writer.write(SampleRecord(step=step, prompt="x" * size, text="y"))
        writer.write(LeftOutRecord(step=step, reason="z" * size))
    writer.finish()
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    cut = tmp_path / "cut.wandb"
    for part in (1, 3, 7, 8):
        cut.write_bytes(content[: len(content) * part // 8])
        monkeypatch.setattr(session, "_TAIL_BYTES", 1 << 40)
        last = last_step_of(cut)
        found = set[int]()
        for tail in range(0, len(content), 32_768):
            monkeypatch.setattr(session, "_TAIL_BYTES", tail)
            found.add(last_step_of(cut))
        assert found <= {-1, last}
        assert last in found
    assert last == steps
    cut.write_bytes(content[:40_000] + bytes(200) + b"\x01\x00\x00\x00\xff\x00\x01" * 50)
    assert 0 < last_step_of(cut) <= steps


@pytest.mark.parametrize("before", range(0, 220, 20))
def test_no_part_of_the_key_is_told(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 20 + "\n" + "k" * 20)
    told = describe(ValueError("x" * before + "k" * 20 + "\n" + "k" * 20 + " is refused"))
    assert "k" not in told.removesuffix(" is refused")


def test_an_end_that_finds_no_room_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_writer, "MAX_WAITING", 5)
    writer = WandbWriter(
        run_config(tmp_path, "watch.wandb=offline"), run_id="12345678", mode="offline"
    )
    for step in range(1, 40):
        writer.write(train_record(step))
    writer.finish()
    [note] = writer.take_notes()
    assert note.startswith("W&B does not keep up")
    assert losses(history(tmp_path))[:5] == expected(5)
