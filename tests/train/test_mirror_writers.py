"""A mirror whose writer was suspended, and which another one has taken over when it wakes."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab_fixtures import S3Lab
from tests.train.mirrors import directory, held
from tests.train.storage.relay import Fault, relay
from train.mirror import Mirror
from train.storage.config import StorageConfig
from train.storage.place import Place


class Gate:
    """Holds back what is sent from the first request on that a test means."""

    def __init__(self, is_meant: Callable[[bytes], bool]) -> None:
        self._is_meant = is_meant
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, data: bytes) -> None:
        if self.reached.is_set() or self._is_meant(data):
            self.reached.set()
            assert self.opened.wait(60)


@pytest.mark.parametrize(
    "held_back",
    [b"PUT /lab/%s/files/metrics", b"PUT /lab/%s/files/samples", b"PUT /lab/%s/mirror.1.json"],
    ids=["a piece", "the second piece", "the note"],
)
def test_who_wakes_in_the_middle_of_a_push_writes_over_nothing(
    held_back: bytes, s3_lab: S3Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3_lab.environment.items():
        monkeypatch.setenv(variable, value)
    url = f"s3://{s3_lab.bucket}/{tmp_path.name}"
    gate = Gate(lambda data: data.startswith(held_back % tmp_path.name.encode()))
    with relay(s3_lab.environment["S3_ENDPOINT_URL"], lambda _: Fault(before_passing=gate)) as wire:
        first = directory(tmp_path / "first", config="a", metrics="1\n", samples="1")
        behind = Place.parse(url, StorageConfig(endpoint_url=wire.url, timeout_seconds=60))
        sleeper = Mirror(behind, first)
        gate.reached.clear()
        is_awake = threading.Event()
        gate._is_meant, meant = (lambda _: False), gate._is_meant
        sleeper.bring()
        sleeper.push()
        first.metrics.write_text("1\nof one that sleeps\n")
        first.samples.write_text("1, of one that sleeps")
        gate._is_meant = meant

        def push() -> None:
            sleeper.push()
            is_awake.set()

        thread = threading.Thread(target=push, daemon=True)
        thread.start()
        assert gate.reached.wait(30)
        place = Place.parse(url)
        second = directory(tmp_path / "second", config="a")
        other = Mirror(place, second)
        assert other.bring() == f"2 files of the run brought from {place}"
        assert second.metrics.read_text() == "1\n"
        second.metrics.write_text("1\n2\n")
        other.push()
        gate.opened.set()
        thread.join(60)
        assert is_awake.is_set()
    assert held(place, "metrics.jsonl") == b"1\n2\n"
    assert held(place, "samples.txt") == b"1"
    other.push()
    third = directory(tmp_path / "third", config="a")
    Mirror(place, third).bring()
    assert third.metrics.read_text() == "1\n2\n"
    assert third.samples.read_text() == "1"
    assert [name for name in place.names() if name != "files"] == ["mirror.3.json"]
    assert len(list((place / "files").files())) == 3, "what the sleeper has written is gone, too"


def test_of_two_that_begin_at_once_each_has_a_number_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one looked dead and woke just when the other one began."""
    place = Place.of(tmp_path / "store")
    first = directory(tmp_path / "first", config="a", metrics="1\n")
    second = directory(tmp_path / "second", config="a")
    mirror, other, files = Mirror(place, first), Mirror(place, second), Mirror._note_file
    once = [True]

    def meanwhile(self: Mirror, count: int) -> Place:
        if self is other and once:
            once.clear()
            mirror.bring()
            mirror.push()
        return files(self, count)

    monkeypatch.setattr(Mirror, "_note_file", meanwhile)
    assert other.bring() == f"1 files of the run brought from {place}"
    assert second.metrics.read_text() == "1\n"
    assert place.names() == ["files", "mirror.2.json"]


def test_links_within_the_run_are_followed_and_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the run itself writes lies where a user has put it, such as on another disk."""
    place, outside = Place.of(tmp_path / "store"), tmp_path / "disk"
    here = directory(tmp_path / "run", config="a")
    outside.mkdir()
    (outside / "metrics").write_text("1\n")
    here.metrics.symlink_to(outside / "metrics")
    (outside / "ledger").mkdir()
    (outside / "ledger/00001-00000.bin").write_text("x")
    here.ledger.symlink_to(outside / "ledger")
    here.scores.mkdir()
    (here.scores / "same.json").symlink_to("../config.yaml")
    (here.scores / "secret").symlink_to(outside / "metrics")
    (here.scores / "nothing").symlink_to("gone")
    (here.scores / "directory").symlink_to(outside)
    mirror = Mirror(place, here)
    mirror.bring()
    with caplog.at_level(logging.WARNING):
        mirror.push()
        mirror.push()
    assert held(place, "metrics.jsonl") == b"1\n"
    assert held(place, "ledger/00001-00000.bin") == b"x"
    assert held(place, "scores/same.json") == b"a"
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(" leads to no file of the run")[0] for text in said] == [
        str(here.scores / name) for name in ("directory", "nothing", "secret")
    ]
    second = directory(tmp_path / "second", config="a")
    Mirror(place, second).bring()
    assert sorted(path.name for path in second.scores.iterdir()) == ["same.json"]
    assert not second.metrics.is_symlink()
