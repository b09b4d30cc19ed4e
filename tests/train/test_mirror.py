"""A run's mirror: what another cluster, which shares nothing but the store, goes on from."""

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import write_corpus
from tests.lab_fixtures import S3Lab
from tests.train.mirrors import directory, held, told
from tests.train.runs import DEADLINE_SECONDS, TINY_RUN, kill_at, run, start
from tools.ledger import check_run
from train.claim import check, claim, leases_of
from train.config import RunConfig
from train.config_files import dump, load
from train.errors import ConfigError, RunDirectoryError
from train.exit_status import ExitStatus
from train.mirror import Mirror
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.watch.metrics import Metrics

STEPS = ("steps=12", "checkpoint.every_steps=3", "validation.every_steps=3")


def test_two_directories_take_turns(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "store")
    first = directory(tmp_path / "first", config="a", metrics="1\n", ledger="x")
    (first.path / "checkpoints").mkdir()
    (first.path / "checkpoints/latest").write_text("no file of a mirror")
    mirror = Mirror(place, first)
    assert mirror.bring() is None, "there is nothing yet"
    mirror.push()
    assert sorted(each.name for each in place.files()) == [
        "files/config.yaml/000000000000-1.1",
        "files/ledger/00001-00000.bin/000000000000-1.1",
        "files/metrics.jsonl/000000000000-1.1",
        "mirror.1.json",
    ]
    second = directory(tmp_path / "second")
    other = Mirror(place, second)
    assert other.bring() == f"2 files of the run brought from {place}"
    assert told(second) | {"config.yaml": b"a"} == told(first)
    assert not second.config.exists(), "that is each directory's own"
    second.metrics.write_text("1\n2\n")
    other.push()
    # The first has gone on for a while, which nobody knew of when the second began.
    first.metrics.write_text("1\nlost\n")
    first.left_out.write_text("lost")
    (first.ledger / "00002-00000.bin").write_text("lost")
    first.attempts.write_text("its keeper's")
    first.choice.write_text("its own")
    aside = first.path / "superseded/1"
    assert Mirror(place, first).bring() == (
        f"1 files of the run brought from {place}; 3 that were here lie in {aside}"
    )
    assert told(first) == told(second) | {
        "config.yaml": b"a",
        "attempts.jsonl": b"its keeper's",
        "pretrain.json": b"its own",
    }
    assert {path.relative_to(aside).as_posix() for path in aside.rglob("*.*")} == {
        *("metrics.jsonl", "left_out.json", "ledger/00002-00000.bin"),
    }
    assert (aside / "metrics.jsonl").read_text() == "1\nlost\n"


def test_nothing_that_was_put_aside_is_lost(tmp_path: Path) -> None:
    """Not by another mirror at the same place, which counts from the beginning again."""
    place, here = Place.of(tmp_path / "store"), directory(tmp_path / "run", metrics="mine\n")
    for turn in ("first", "second"):
        other = Mirror(place, directory(tmp_path / turn, config="a", metrics=f"{turn}\n"))
        other.bring()
        other.push()
        Mirror(place, here).bring()
        assert here.metrics.read_text() == f"{turn}\n"
        place.remove()
    aside = [path.read_text() for path in sorted((here.path / "superseded").rglob("*.jsonl"))]
    assert aside == ["mine\n", "first\n"]


def written_before(place: Place, *, by: str | None) -> None:
    """What earlier versions have written: files by their own names, and a note of one name."""
    files = {"config.yaml": "a", "metrics.jsonl": "1\n", "ledger/00001-00000.bin": "x"}
    if by is not None:
        files["mirror.json"] = json.dumps({"by": by, "count": 3})
    for name, text in files.items():
        (place / name).write(text.encode())


@pytest.mark.parametrize("by", [None, "another"])
def test_what_an_earlier_version_wrote_is_taken_over(by: str | None, tmp_path: Path) -> None:
    """Without a note a new directory takes over what is there; one that has written goes on."""
    place = Place.of(tmp_path / "store")
    written_before(place, by=by)
    first = directory(tmp_path / "first", config="a")
    mirror = Mirror(place, first)
    assert mirror.is_ahead()
    assert mirror.config is not None
    assert mirror.config.read() == b"a"
    assert mirror.bring() == f"2 files of the run brought from {place}"
    assert first.metrics.read_text() == "1\n"
    first.metrics.write_text("1\n2\n")
    second = directory(tmp_path / "second")
    assert Mirror(place, second).is_ahead(), "of what lies there still"
    mirror.push()
    count = 4 if by is not None else 1
    left = [found.name for found in place.files() if not found.name.startswith("files/")]
    assert left == [f"mirror.{count}.json"]
    assert Mirror(place, second).bring() == f"2 files of the run brought from {place}"
    assert second.metrics.read_text() == "1\n2\n"


def test_files_that_nobody_says_who_wrote_are_not_brought_to_who_has_written(
    tmp_path: Path,
) -> None:
    place = Place.of(tmp_path / "store")
    first = directory(tmp_path / "first", config="a", metrics="1\n2\n")
    Mirror(place, first).bring()
    place.remove()
    written_before(place, by=None)
    mirror = Mirror(place, first)
    assert not mirror.is_ahead()
    assert mirror.bring() is None
    mirror.push()
    assert held(place, "metrics.jsonl") == b"1\n2\n"


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
    assert held(place, "metrics.jsonl") == b"1\n2\n"


@pytest.mark.parametrize("is_written", [True, False])
def test_a_kill_between_both_notes_brings_nothing_back(
    is_written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory's note is written first: whether the mirror's has followed, or not."""
    place = Place.of(tmp_path / "store")
    here = directory(tmp_path / "run", metrics="1\n")
    mirror = Mirror(place, here)
    mirror.bring()
    mirror.push()
    before = (place / "mirror.1.json").read()
    Mirror(place, here).bring()
    if not is_written:
        (place / "mirror.2.json").remove()
        (place / "mirror.1.json").write(before)
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
    here.metrics.write_text("1\n2\n")
    mirror.push()
    mirror.push()
    assert sorted(each.name for each in place.files()) == [
        "files/config.yaml/000000000000-1.1",
        "files/metrics.jsonl/000000000000-1.2",
        "mirror.1.json",
    ]
    assert held(place, "metrics.jsonl") == b"1\n2\n"


def test_what_is_half_written_or_goes_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation writes scores while the run is saved, which nothing of it may end."""
    place = Place.of(tmp_path / "store")
    here = directory(tmp_path / "run", metrics="1\n")
    here.scores.mkdir()
    (here.scores / ".page.html.tmp-0a").write_text("half of it")
    going = here.scores / "going.json"
    going.write_text("{}")
    files = Mirror._files

    def gone(self: Mirror) -> Iterator[Path]:
        for path in files(self):
            going.unlink(missing_ok=True)
            yield path

    monkeypatch.setattr(Mirror, "_files", gone)
    mirror = Mirror(place, here)
    mirror.bring()
    mirror.push()
    assert sorted(each.name for each in place.files()) == [
        "files/metrics.jsonl/000000000000-1.1",
        "mirror.1.json",
    ]


def test_what_is_no_more_goes_from_the_mirror(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "store")
    here = directory(tmp_path / "run", metrics="1\n", summary="{}")
    mirror = Mirror(place, here)
    mirror.bring()
    mirror.push()
    for _ in range(2):
        mirror.forget(here.summary)
        assert held(place, "summary.json") is None
        assert held(place, "metrics.jsonl") == b"1\n"
        assert [each.name for each in (place / "files").files()] == [
            "metrics.jsonl/000000000000-1.1"
        ]


def recorded(metrics: Metrics) -> list[tuple[object, ...]]:
    train = [(r.step, r.loss, r.gradient_norm) for r in metrics.train]
    return [*train, *((r.step, r.loss) for r in metrics.validation)]


def test_another_cluster_goes_on(
    s3_lab: S3Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in one directory, in another, finished in the first: one curve, one ledger, one id."""
    corpus, url = write_corpus(tmp_path / "corpus"), f"s3://{s3_lab.bucket}/{tmp_path.name}/run"
    whole = run(corpus, tmp_path / "whole", *STEPS)
    near = f"checkpoint.local={{directory: {tmp_path}/disk, every_steps: 1, copies: 0}}"
    mirrored = (*STEPS, f"run_mirror={url}", near)
    environment = s3_lab.environment
    attempt = start(corpus, tmp_path / "a/run", *mirrored, environment=environment)
    kill_at(attempt, tmp_path / "a/run", step=8)
    assert not (tmp_path / "a/run/checkpoints").exists()
    # What it has found since its last checkpoint, and its disk's steps, nobody has gone on from.
    (tmp_path / "a/run/left_out.json").write_text('[{"step": 7, "reason": "not finite"}]')
    other = start(corpus, tmp_path / "b/run", *mirrored, "optim.lr=7e-4", environment=environment)
    refused = other.wait()
    assert refused.code == ExitStatus.MISTAKE
    assert "holds a different run" in refused.output
    assert not (tmp_path / "b").exists()
    attempt = start(corpus, tmp_path / "b/run", *mirrored, environment=environment)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (tmp_path / "b/run/local.json").exists():  # from then on the mirror is the other's
        assert attempt.ranks[0].poll() is None, attempt.wait().output[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    attempt.signal(signal.SIGKILL)
    attempt.wait()
    found = run(corpus, tmp_path / "a/run", *mirrored, environment=environment)
    assert found.runs[-1].step in (3, 6, 9)
    assert recorded(found) == recorded(whole), [note.text for note in found.notes]
    assert any(f"brought from {url}" in note.text for note in found.notes)
    assert (tmp_path / "a/run/superseded/1/left_out.json").exists()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    findings = check_run(tmp_path / "a/run")
    assert (findings.faults, findings.steps) == ([], 12)
    again = start(corpus, tmp_path / "b/run", *mirrored, environment=environment).wait()
    assert f"is complete: {url}/checkpoints/step_00000012" in again.output
    here, there = (told(RunDirectory(tmp_path / name / "run")) for name in "ab")
    assert {**here, "config.yaml": b""} == {**there, "config.yaml": b""}, "what the other has made"
    notes = [name for name in Place.parse(url).names() if name.startswith("mirror.")]
    assert len(notes) == 1, notes
    (Place.parse(url) / notes[0]).write(b"damaged")
    again = start(corpus, tmp_path / "b/run", *mirrored, ranks=2, environment=environment).wait()
    assert again.code == ExitStatus.MISTAKE, "of all ranks"
    assert f"{url}/{notes[0]} is damaged" in again.output
    assert "Traceback" not in again.output, "nobody waits for the first"
    # Without the mirror there would be no checkpoint, and the run would begin anew.
    alone = start(corpus, tmp_path / "a/run", *STEPS, environment=environment).wait()
    assert alone.code == ExitStatus.MISTAKE
    assert f"set run_mirror={url} to go on" in alone.output


def test_what_is_cut_short_as_it_is_brought_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new directory in which the disk is full: it is the run's, and brings the rest later."""
    place = Place.of(tmp_path / "store")
    files = {"config.yaml": "", "metrics.jsonl": "1\n", "samples.txt": "a", "summary.json": "{}"}
    for name, text in files.items():
        (place / name).write(text.encode())  # by their own names, as earlier versions did
    places = ("data.corpus=c", f"run_directory={tmp_path}/run", "precision=fp32")
    config = load(RunConfig, [str(TINY_RUN), *places])
    (place / "config.yaml").write(dump(config).encode())
    mirror, checkpoints = Mirror(place, config.directory), place / "checkpoints"
    brought, fails = Mirror._brought, [True]

    def full(self: Mirror, name: str, *given: Any) -> bool:
        if name == "samples.txt" and fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return brought(self, name, *given)

    monkeypatch.setattr(Mirror, "_brought", full)
    with ExitStack() as exits:
        leases = [exits.enter_context(each) for each in leases_of(config, checkpoints)]
        with pytest.raises(RunDirectoryError, match=r"cannot take over .*No space left on device"):
            claim(config, leases, checkpoints, None, mirror)
        assert config.directory.metrics.exists()
        fails.clear()
        check(config)
        told = claim(config, leases, checkpoints, None, mirror)
    assert told is not None
    assert "files of the run brought from" in told
    assert config.directory.samples.read_text() == "a"
    assert not config.directory.summary.exists(), "the run goes on"
    assert held(place, "summary.json") is None


@pytest.mark.parametrize("run_directory", [".", "runs/..", "'~'", "~/", "/", "$HOME", "x/$HOME"])
def test_a_directory_without_a_name_has_no_mirror_of_its_own(run_directory: str) -> None:
    """It would be the store's of all runs, or another one on each cluster."""
    keys = ["data.corpus=c", f"run_directory={run_directory}", "cluster.store=s3://b/runs"]
    with pytest.raises(ConfigError, match=r"cluster.store: .* ends in no name .*: set run_mirror"):
        load(RunConfig, [str(TINY_RUN), *keys])
    named = load(RunConfig, [str(TINY_RUN), *keys, "run_mirror=s3://b/mine"])
    assert named.run_mirror == "s3://b/mine"


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
