"""The monitor: what lands in the run directory and what a person sees."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from parallel.launch import World
from tests.terminal import Terminal
from tests.train.records import run_config, train_record, validation_record
from train.watch.config import WatchConfig
from train.watch.metrics import BaselineRecord, MetricsFile, SampleRecord, read_metrics
from train.watch.monitor import Monitor
from train.watch.progress import Display

LINES = ("steps=12", "watch.log_every_steps=5")


def open_monitor(
    directory: Path, *overrides: str, rank: int = 0, wandb_run_id: str | None = None
) -> Monitor:
    return Monitor(
        run_config(directory, *LINES, *overrides),
        World(rank=rank, size=2, device=torch.device("cpu")),
        first_step=0,
        num_parameters=1234,
        wandb_run_id=wandb_run_id,
    )


def test_everything_is_recorded(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.write(BaselineRecord(step=0, unigram_entropy=7.0625))
        monitor.write(validation_record(0, 9.0))
        for step in range(1, 13):
            monitor.write(train_record(step))
        monitor.write(SampleRecord(step=12, prompt="The kernel", text=" is"))
        monitor.note("enough")

    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics.baseline is not None
    assert metrics.baseline.unigram_entropy == 7.0625
    assert metrics.validation == [validation_record(0, 9.0)]
    assert metrics.train == [train_record(step) for step in range(1, 13)]
    assert [(note.step, note.text) for note in metrics.notes] == [(12, "enough")]
    assert metrics.runs[0].num_parameters == 1234
    assert metrics.runs[0].machine
    assert "step 12" in (tmp_path / "samples.txt").read_text()
    assert "The kernel▸ is" in (tmp_path / "samples.txt").read_text()


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_monitor(tmp_path, "watch.wandb=offline", rank=1) as monitor:
        monitor.write(BaselineRecord(step=0, unigram_entropy=7.0))
        monitor.write(train_record(1))
        monitor.write(validation_record(1, 9.0))
        monitor.write(SampleRecord(step=1, prompt="a", text="b"))
        monitor.note("c")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_monitor(tmp_path) as monitor:
        for step in range(1, 13):
            monitor.write(train_record(step))
        monitor.write(validation_record(12, 7.25))
        monitor.note("[bold]as it stands[/bold] " + "long " * 40)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1/12 loss 8.900 lr 2.9e-4 5,000 tokens/s eta 0:02"
    steps = [line.split()[1] for line in lines[:5]]
    assert steps == ["1/12", "5/12", "10/12", "12/12", "12/12"]
    assert lines[4] == "step 12/12 validation loss 7.250"
    assert lines[5].startswith("[bold]as it stands[/bold] long long")


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from tests.train.records import train_record, validation_record
from tests.train.watch.test_monitor import open_monitor
with open_monitor(Path({str(tmp_path)!r}), "watch.progress=null") as monitor:
    monitor.write(validation_record(0, 9.125))
    for step in range(1, 13):
        monitor.write(train_record(step))
    time.sleep(0.5)
"""
    terminal = Terminal()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"}
    subprocess.run(
        [sys.executable, "-c", program],
        stdin=terminal.follower,
        stdout=terminal.follower,
        stderr=terminal.follower,
        env=environment,
        timeout=60,
        check=True,
    )
    terminal.close()
    screen = terminal.screen
    assert "step 12/12" in screen
    assert "━" in screen
    assert "tokens/s" in screen
    assert "validation 9.125" in screen


def test_a_full_disk_leaves_the_terminal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def full(_: MetricsFile) -> None:
        closed.append("metrics")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsFile, "close", full)
    monkeypatch.setattr(Display, "close", lambda _: closed.append("display"))
    with open_monitor(tmp_path):
        pass
    assert closed == ["display", "metrics"]


def test_the_run_id_travels(tmp_path: Path) -> None:
    made = open_monitor(tmp_path).wandb_run_id
    assert made
    assert open_monitor(tmp_path).wandb_run_id != made
    assert open_monitor(tmp_path, wandb_run_id=made).wandb_run_id == made


def test_a_run_that_has_saved_nothing_keeps_its_id(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as first:
        first.write(train_record(1))
    assert open_monitor(tmp_path).wandb_run_id == first.wandb_run_id
    # With other numbers it is another run.
    assert open_monitor(tmp_path, "seed=2").wandb_run_id != first.wandb_run_id


def test_wandb_is_offline_unless_asked(tmp_path: Path) -> None:
    with open_monitor(tmp_path, "watch.wandb=offline") as monitor:
        monitor.write(train_record(1))
    run_id = monitor.wandb_run_id
    assert len(list(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))) == 1
    assert read_metrics(tmp_path / "metrics.jsonl").notes == []


def test_wandb_switched_off_from_outside_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with open_monitor(tmp_path, "watch.wandb=online") as monitor:
        monitor.write(train_record(1))
    assert not (tmp_path / "wandb").exists()
    [note] = read_metrics(tmp_path / "metrics.jsonl").notes
    assert note.text.startswith("W&B is disabled: WANDB_MODE=disabled")


def test_the_file_is_whole_when_the_loop_raises(tmp_path: Path) -> None:
    def train() -> None:
        with open_monitor(tmp_path) as monitor:
            monitor.write(train_record(1))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train()
    assert [record.step for record in read_metrics(tmp_path / "metrics.jsonl").train] == [1]


@pytest.mark.parametrize("values", [{"wandb": "live"}, {"log_every_steps": 0}, {"project": "x"}])
def test_what_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WatchConfig(**values)
