"""A run's mirror: what another cluster, which shares nothing but the store, goes on from."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora import write_corpus
from tests.lab_fixtures import S3Lab
from tests.train.runs import TINY_RUN, kill_at, run, start
from tools.ledger import check_run
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError
from train.exit_status import ExitStatus
from train.mirror import Mirror
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.watch.metrics import Metrics

STEPS = ("steps=12", "checkpoint.every_steps=3", "validation.every_steps=3")


def directory(path: Path, **files: str) -> RunDirectory:
    path.mkdir(parents=True, exist_ok=True)
    found = RunDirectory(path)
    for name, text in files.items():
        place: Path = getattr(found, name)
        place = place / "00001-00000.bin" if name == "ledger" else place
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return found


def told(found: RunDirectory) -> dict[str, bytes]:
    """All that a mirror keeps of a directory."""
    files = [path for kept in found.mirrored for path in (kept, *kept.rglob("*"))]
    return {
        str(path.relative_to(found.path)): path.read_bytes() for path in files if path.is_file()
    }


def test_two_directories_take_turns(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "store")
    first = directory(tmp_path / "first", config="a", metrics="1\n", ledger="x")
    (first.path / "checkpoints").mkdir()
    (first.path / "checkpoints/latest").write_text("no file of a mirror")
    mirror = Mirror(place, first)
    assert mirror.bring() is None, "there is nothing yet"
    mirror.push()
    assert sorted(each.name for each in place.files()) == [
        "config.yaml", "ledger/00001-00000.bin", "metrics.jsonl", "mirror.json",
    ]  # fmt: skip
    second = directory(tmp_path / "second")
    other = Mirror(place, second)
    assert other.bring() == f"2 files of the run brought from {place}"
    assert told(second) | {"config.yaml": b"a"} == told(first)
    assert not second.config.exists(), "that is each directory's own"
    second.metrics.write_text("1\n2\n")
    other.push()
    # The first has gone on for a while, which nobody knew of when the second began.
    first.metrics.write_text("1\nlost\n")
    assert Mirror(place, first).bring() == f"1 files of the run brought from {place}"
    assert first.metrics.read_text() == "1\n2\n"
    assert (first.path / "superseded/2/metrics.jsonl").read_text() == "1\nlost\n"


def test_who_wrote_last_keeps_what_came_since(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "store")
    here = directory(tmp_path / "run", metrics="1\n")
    mirror = Mirror(place, here)
    mirror.bring()
    mirror.push()
    here.metrics.write_text("1\n2\n")  # and is killed
    again = Mirror(place, here)
    assert again.bring() is None
    assert here.metrics.read_text() == "1\n2\n"
    again.push()
    assert (place / "metrics.jsonl").read() == b"1\n2\n"


@pytest.mark.parametrize("is_written", [True, False])
def test_a_kill_between_both_notes_brings_nothing_back(
    is_written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory's note is written first: whether the mirror's has followed, or not."""
    place = Place.of(tmp_path / "store")
    here = directory(tmp_path / "run", metrics="1\n")
    Mirror(place, here).bring()
    Mirror(place, here).push()
    before = (place / "mirror.json").read()
    Mirror(place, here).bring()
    if not is_written:
        (place / "mirror.json").write(before)
    here.metrics.write_text("1\n2\n")
    assert Mirror(place, here).bring() is None
    assert here.metrics.read_text() == "1\n2\n"


def test_nothing_is_brought_that_no_run_has(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "store")
    mirror = Mirror(place, directory(tmp_path / "run", config="a", metrics="1\n"))
    mirror.bring()
    mirror.push()
    for name in ("checkpoints/latest", ".lock.1", "wandb/run", ".bashrc"):
        (place / name).write(b"other")
    second = directory(tmp_path / "second")
    Mirror(place, second).bring()
    assert {path.name for path in second.path.iterdir()} == {".mirror.json", "metrics.jsonl"}


def test_what_is_written_is_what_has_changed(tmp_path: Path, monkeypatch: Any) -> None:
    place = Place.of(tmp_path / "store")
    here = directory(tmp_path / "run", config="a", metrics="1\n")
    mirror = Mirror(place, here)
    mirror.bring()
    mirror.push()
    (place / "config.yaml").remove()
    here.metrics.write_text("1\n2\n")
    mirror.push()
    assert not (place / "config.yaml").exists()
    assert (place / "metrics.jsonl").read() == b"1\n2\n"


def recorded(metrics: Metrics) -> list[tuple[object, ...]]:
    train = [(r.step, r.loss, r.gradient_norm) for r in metrics.train]
    return [*train, *((r.step, r.loss) for r in metrics.validation)]


def test_another_cluster_goes_on(
    s3_lab: S3Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in one directory, finished in another: one curve, one ledger, one id."""
    corpus, url = write_corpus(tmp_path / "corpus"), f"s3://{s3_lab.bucket}/{tmp_path.name}/run"
    whole = run(corpus, tmp_path / "whole", *STEPS)
    mirrored = (*STEPS, f"run_mirror={url}")
    environment = s3_lab.environment
    attempt = start(corpus, tmp_path / "a/run", *mirrored, environment=environment)
    kill_at(attempt, tmp_path / "a/run", step=8)
    assert not (tmp_path / "a/run/checkpoints").exists()
    other = start(corpus, tmp_path / "b/run", *mirrored, "optim.lr=7e-4", environment=environment)
    refused = other.wait()
    assert refused.code == ExitStatus.MISTAKE
    assert "holds a different run" in refused.output
    assert not (tmp_path / "b").exists()
    found = run(corpus, tmp_path / "b/run", *mirrored, environment=environment)
    assert found.runs[-1].step in (3, 6)
    assert recorded(found) == recorded(whole), [note.text for note in found.notes]
    assert any(f"brought from {url}" in note.text for note in found.notes)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    findings = check_run(tmp_path / "b/run")
    assert (findings.faults, findings.steps) == ([], 12)
    again = start(corpus, tmp_path / "a/run", *mirrored, environment=environment).wait()
    assert f"is complete: {url}/checkpoints/step_00000012" in again.output
    here, there = (told(RunDirectory(tmp_path / name / "run")) for name in "ab")
    assert {**here, "config.yaml": b""} == {**there, "config.yaml": b""}, "what the other has made"
    # Without the mirror there would be no checkpoint, and the run would begin anew.
    alone = start(corpus, tmp_path / "a/run", *STEPS, environment=environment).wait()
    assert alone.code == ExitStatus.MISTAKE
    assert f"set run_mirror={url} to go on" in alone.output


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["run_mirror=/shared/x"], "run_mirror: must be such as s3://bucket/runs"),
        (["run_mirror=s3://b/x", "checkpoint.directory=y"], "checkpoint.directory: run_mirror hol"),
    ],
)
def test_what_makes_no_sense_is_refused(keys: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(RunConfig, [str(TINY_RUN), "data.corpus=c", "run_directory=r", *keys])
