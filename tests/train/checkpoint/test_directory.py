"""Which checkpoint is meant, which stay, and what a writer that died leaves behind."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lab_fixtures import place_at
from train.checkpoint import directory as checkpoint_directory
from train.checkpoint.directory import Retention, complete, latest, resolve
from train.checkpoint.format import json_bytes, seal
from train.checkpoint.restore import read_state
from train.checkpoint.weights import read_values, write_values
from train.errors import CheckpointError, InUseError, StorageError
from train.storage.place import Place


def _checkpoint(path: Path, step: int) -> Place:
    return write_values(path, {"weight": torch.arange(3.0)}, {"step": step})


def test_paths_are_resolved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    directory = run / "checkpoints"
    for step in (10, 20):
        _checkpoint(directory / f"step_{step:08d}", step)
    (directory / "latest").write_text("step_00000020\n")
    for path in (run, directory, directory / "step_00000020"):
        assert resolve(path) == Place.of(directory / "step_00000020")
    assert read_state(directory / "step_00000010").step == 10
    (directory / "latest").unlink()
    assert latest(directory) == Place.of(directory / "step_00000020")
    (directory / "step_00000030").mkdir()  # without an index it is none
    assert latest(directory) == Place.of(directory / "step_00000020")
    (directory / "latest").write_text("step_00000030\n")
    with pytest.raises(CheckpointError, match="latest names 'step_00000030', which is no"):
        resolve(run)
    assert latest(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="holds no checkpoint: name a run directory"):
        resolve(tmp_path)
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.yaml").touch()
    with pytest.raises(CheckpointError, match="has made no checkpoint yet, or keeps them else"):
        resolve(tmp_path / "young")
    with pytest.raises(CheckpointError, match="is not there: name a run directory"):
        resolve(tmp_path / "nowhere")


def test_what_is_announced_is_the_latest_from_its_index_on(tmp_path: Path) -> None:
    """Whoever goes back by hand names one, and what lies ahead of it is none."""
    _checkpoint(tmp_path / "step_00000010", 10)
    checkpoint_directory.point_to(Place.of(tmp_path / "step_00000010"))
    checkpoint_directory.announce(Place.of(tmp_path / "step_00000020"))
    (tmp_path / "step_00000020").mkdir()
    assert latest(tmp_path) == Place.of(tmp_path / "step_00000010")
    (tmp_path / "step_00000020").rmdir()
    _checkpoint(tmp_path / "step_00000020", 20)
    assert latest(tmp_path) == Place.of(tmp_path / "step_00000020")
    checkpoint_directory.announce(Place.of(tmp_path / "step_00000030"))
    assert (tmp_path / "latest").read_text() == "step_00000020\nstep_00000030\n"
    (tmp_path / "latest").write_text("step_00000010\n")
    assert latest(tmp_path) == Place.of(tmp_path / "step_00000010")
    (tmp_path / "latest").write_text("step_00000010\nand more\n")
    with pytest.raises(CheckpointError, match="latest names 'step_00000010"):
        latest(tmp_path)


def test_a_disk_that_says_nothing_is_no_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what cleans up behind dead writers would remove a whole checkpoint."""
    for step in (10, 20):
        _checkpoint(tmp_path / f"step_{step:08d}", step)
    asked = os.stat

    def stale(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("step_00000020/index.json"):
            raise OSError(errno.ESTALE, "stale file handle", str(path))
        return asked(path, **options)

    monkeypatch.setattr(os, "stat", stale)
    with pytest.raises(OSError, match="stale file handle"):
        checkpoint_directory.clean(Place.of(tmp_path))
    monkeypatch.undo()
    assert latest(tmp_path) == Place.of(tmp_path / "step_00000020")


@pytest.mark.parametrize(
    ("retention", "newest", "retired"),
    [
        (Retention(keep=1), 50, ["10", "20", "20.2", "30", "40"]),
        (Retention(keep=3), 50, ["10", "20", "20.2"]),
        (Retention(keep=9), 50, []),
        (Retention(keep=1, keep_every_steps=20), 50, ["10", "20", "30"]),
        (Retention(keep=2, keep_every_steps=50), 50, ["10", "20", "20.2", "30"]),
        # Gone back: what lies ahead goes first, milestone or not.
        (Retention(keep=3), 20.2, ["30", "40", "50"]),
        (Retention(keep=1, keep_every_steps=10), 20.2, ["30", "40", "50", "20"]),
    ],
)
def test_retention(retention: Retention, newest: float, retired: list[str]) -> None:
    def name(step: str) -> str:
        number, _, revision = step.partition(".")
        return f"step_{int(number):08d}" + (f".{revision}" if revision else "")

    names = [name(step) for step in ("10", "20", "20.2", "30", "40", "50")]
    assert retention.retired(names, newest=name(str(newest))) == [name(step) for step in retired]


def test_the_next_writer_clears_what_the_last_one_left(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "step_00000010", 10)
    for name in ("step_00000020", "step_00000010.2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chunks-00000.safetensors").touch()
        (tmp_path / name / ".index.json.tmp-0a1b2c3d").touch()
    (tmp_path / ".latest.tmp-0a1b2c3d").touch()
    assert checkpoint_directory.stage(tmp_path, 10) == Place.of(tmp_path / "step_00000010.2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010"]


def _taken_over() -> None:
    raise InUseError("another process has it")


def test_who_wakes_when_another_has_gone_on_removes_nothing_of_it(tmp_path: Path) -> None:
    """To the one that slept just before it drops old ones, those to come look abandoned."""
    for step in (10, 20, 30):
        _checkpoint(tmp_path / f"step_{step:08d}", step)
    staged = Place.of(tmp_path / "step_00000010")
    with pytest.raises(InUseError):
        checkpoint_directory.commit(staged, retention=Retention(keep=1), guard=_taken_over)
    (tmp_path / "step_00000040").mkdir()  # being written
    with pytest.raises(InUseError):
        checkpoint_directory.stage(tmp_path, 20, guard=_taken_over)
    names = {"step_00000010", "step_00000020", "step_00000030", "step_00000040"}
    assert {path.name for path in tmp_path.glob("step_*")} == names


@pytest.mark.parametrize("name", [checkpoint_directory.announce, checkpoint_directory.point_to])
def test_who_wakes_just_before_it_names_the_latest_names_none(
    name: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    """It has looked who the newest is of, and slept then."""
    directory = place_at("in a store", "pointer", request)
    for _ in range(2):
        checkpoint_directory.point_to(directory / "step_00000010")
    name(directory / "step_00000020")

    def while_it_slept() -> None:
        (directory / "latest").write(b"step_00000060\n")

    with pytest.raises(InUseError, match=r"latest was written by another process meanwhile: end"):
        name(directory / "step_00000030", guard=while_it_slept)
    assert (directory / "latest").read() == b"step_00000060\n"


def test_what_was_announced_and_is_not_whole_is_withdrawn(tmp_path: Path) -> None:
    directory = Place.of(tmp_path)
    checkpoint_directory.withdraw(directory)
    assert not (tmp_path / "latest").exists()
    _checkpoint(tmp_path / "step_00000010", 10)
    checkpoint_directory.point_to(directory / "step_00000010")
    checkpoint_directory.announce(directory / "step_00000020")
    with pytest.raises(InUseError):
        checkpoint_directory.withdraw(directory, guard=_taken_over)
    checkpoint_directory.withdraw(directory)
    assert (tmp_path / "latest").read_text() == "step_00000010\n"
    checkpoint_directory.announce(directory / "step_00000020")
    _checkpoint(tmp_path / "step_00000020", 20)
    checkpoint_directory.withdraw(directory)
    assert latest(tmp_path) == directory / "step_00000020"
    (tmp_path / "latest").write_text("by hand\n")
    checkpoint_directory.withdraw(directory)
    assert (tmp_path / "latest").read_text() == "by hand\n"


def test_who_wakes_just_before_its_index_writes_none(tmp_path: Path) -> None:
    path = Place.of(tmp_path / "step_00000010")
    with pytest.raises(InUseError):
        seal(path, [], json_bytes({"step": 10}), guard=_taken_over)
    assert complete(tmp_path) == []


def test_a_checkpoint_that_another_has_completed_stays_its(tmp_path: Path) -> None:
    """The same step, written by who looked dead and woke."""
    path = _checkpoint(tmp_path / "step_00000010", 10)
    before = {file.name: file.read_bytes() for file in (tmp_path / path.name).iterdir()}
    with pytest.raises(StorageError, match=r"state.json was written by another process"):
        seal(path, [], json_bytes({"step": 10, "mine": True}))
    assert {file.name: file.read_bytes() for file in (tmp_path / path.name).iterdir()} == before


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "merged", 10)
    with pytest.raises(CheckpointError, match="merged exists: choose another place"):
        _checkpoint(tmp_path / "merged", 11)
    assert read_values(tmp_path / "merged")["weight"].tolist() == [0, 1, 2]


def test_who_looks_while_a_run_saves_finds_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the pointer and its checkpoint, the run has saved another one and dropped that."""
    _checkpoint(tmp_path / "step_00000020", 20)
    (tmp_path / "latest").write_text("step_00000010\n")
    real = checkpoint_directory.pointed_to
    looked: list[str | None] = []

    def pointed_to(directory: Place) -> str | None:
        looked.append(real(directory))
        (tmp_path / "latest").write_text("step_00000020\n")
        return looked[-1]

    monkeypatch.setattr(checkpoint_directory, "pointed_to", pointed_to)
    assert latest(tmp_path) == Place.of(tmp_path / "step_00000020")
    assert looked[0] == "step_00000010"
