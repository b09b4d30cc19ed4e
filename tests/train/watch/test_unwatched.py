"""Nothing that only watches a run ends it."""

import os
import pty
import shutil
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from parallel.launch import World
from tests.corpora import write_corpus
from tests.train.records import train_record
from tests.train.runs import TINY_RUN, start, wait_for_step
from tests.train.storage.disks import small_disk
from tools import ledger
from train.checkpoint.directory import latest
from train.config import RunConfig
from train.config_files import load
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.storage.appended import AppendedFile
from train.storage.place import Place
from train.watch.metrics import MetricsFile, read_metrics
from train.watch.monitor import Monitor

STEPS = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@contextmanager
def closed_terminal(_: Path) -> Generator[Path]:
    leader, follower = pty.openpty()
    name = os.ttyname(follower)

    def close_when_it_speaks() -> None:
        os.read(leader, 100)
        os.close(leader)
        os.close(follower)

    threading.Thread(target=close_when_it_speaks, daemon=True).start()
    yield Path(name)


@contextmanager
def reader_that_leaves(place: Path) -> Generator[Path]:
    os.mkfifo(place / "pipe")

    def read_a_little() -> None:
        with (place / "pipe").open("rb", buffering=0) as pipe:
            pipe.read(10)

    threading.Thread(target=read_a_little, daemon=True).start()
    yield place / "pipe"


@contextmanager
def reader_that_stops(place: Path) -> Generator[Path]:
    """It has read nothing for hours: no more fits into the pipe."""
    os.mkfifo(place / "pipe")
    reader = os.open(place / "pipe", os.O_RDWR | os.O_NONBLOCK)
    try:
        while True:
            os.write(reader, bytes(4096))
    except BlockingIOError:
        yield place / "pipe"
    os.close(reader)


@contextmanager
def full_disk(_: Path) -> Generator[Path]:
    yield Path("/dev/full")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (closed_terminal, "Input/output error"),
        (reader_that_leaves, "Broken pipe"),
        (full_disk, "No space left on device"),
        pytest.param(reader_that_stops, "its reader has stopped reading", marks=pytest.mark.long),
    ],
)
def test_output_that_nobody_reads(
    output: Callable, reason: str, corpus: Path, tmp_path: Path
) -> None:
    with output(tmp_path) as place:
        attempt = start(corpus, tmp_path / "run", f"steps={STEPS}", output=place)
        assert attempt.wait().code == 0
    recorded = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [record.step for record in recorded.train] == list(range(1, STEPS + 1))
    told = [note.text for note in recorded.notes if reason in note.text]
    assert 1 <= len(told) <= 2  # each stream says it once
    assert (tmp_path / "run/report.html").exists()


def test_places_that_cannot_be_written(corpus: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with small_disk(tmp_path / "disk", num_bytes=8192) as disk:
        attempt = start(corpus, directory.path, "steps=40", "samples.prompts=[the]")
        wait_for_step(attempt, directory.path, step=1)
        for path in (directory.samples, directory.report):
            path.unlink(missing_ok=True)
            path.mkdir()
        directory.metrics.unlink()
        directory.metrics.symlink_to(disk / "metrics.jsonl")
        (disk / "metrics.jsonl").touch()
        ended = attempt.wait()
    assert ended.code == 0, ended.output[-3000:]
    assert "Traceback" not in ended.output
    for said in (
        f"{directory.metrics}: not written (No space left on device), and the run goes on",
        f"{directory.samples}: not written (Is a directory), and the run goes on",
        "report and",
    ):
        assert ended.output.count(said) == 1, (said, ended.output)
    assert saved_step(directory) == 40


def test_a_directory_that_is_removed_is_written_again(corpus: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    saved = f"checkpoint.directory={tmp_path / 'saved'}"
    attempt = start(corpus, directory.path, "steps=40", saved)
    wait_for_step(attempt, directory.path, step=3)
    while directory.path.exists() and not directory.path.with_name("gone").exists():
        directory.path.rename(directory.path.with_name("gone"))
    shutil.rmtree(directory.path.with_name("gone"))
    ended = attempt.wait()
    assert ended.code == 0, ended.output[-3000:]
    assert "was removed: it is written again, and the run goes on" in ended.output
    recorded = read_metrics(directory.metrics)
    assert [record.step for record in recorded.train] == list(range(1, 41))
    assert ledger.main(["check", str(directory.path)]) == 0


def test_a_ledger_on_a_full_disk_saves_and_stops(corpus: Path, tmp_path: Path) -> None:
    """It does not watch, it promises: what was read is noted before it is saved."""
    arguments = (corpus, tmp_path / "disk/run", f"checkpoint.directory={tmp_path / 'saved'}")
    directory = RunDirectory(tmp_path / "disk/run")
    with small_disk(tmp_path / "disk", num_bytes=4 << 20) as disk:
        attempt = start(*arguments, "steps=100000", "validation.every_steps=100000")
        wait_for_step(attempt, directory.path, step=3)
        with (disk / "full").open("wb", buffering=0) as file:
            # Again and again: what the run itself removes makes room.
            while attempt.ranks[0].poll() is None:
                with suppress(OSError):
                    file.write(bytes(4096))
        ended = attempt.wait()
        assert ended.code == ExitStatus.MISTAKE, ended.output[-3000:]
        assert ended.output.count("ledger/00001-00000.bin cannot be written (No space") == 1
        assert "Traceback" not in ended.output
        stopped = saved_step(directory, tmp_path / "saved")
        assert 3 < stopped < 100000
        (disk / "full").unlink()
        attempt = start(*arguments, "steps=100000", "validation.every_steps=100000")
        wait_for_step(attempt, directory.path, step=stopped + 3)
        attempt.signal(signal.SIGHUP)  # as a terminal does that is closed
        assert attempt.wait().code == ExitStatus.SAVED
        recorded = read_metrics(directory.metrics)
        assert recorded.runs[-1].step == stopped, "no step was repeated"
        assert ledger.main(["check", str(directory.path)]) == 0


def test_metrics_wait_for_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", num_bytes=65536) as disk:
        file = MetricsFile(disk / "metrics.jsonl")
        (disk / "full").write_bytes(bytes(57344))
        failed = 0
        for step in range(1, 101):
            try:
                file.write(train_record(step))
            except OSError:
                failed += 1
        assert failed
        (disk / "full").unlink()
        (disk / "metrics.jsonl").rename(disk / "moved")  # an editor that saves puts another there
        (disk / "metrics.jsonl").write_bytes((disk / "moved").read_bytes())
        (disk / "moved").unlink()
        file.write(train_record(101))
        recorded = read_metrics(disk / "metrics.jsonl")
    assert [record.step for record in recorded.train] == list(range(1, 102))


def test_a_file_that_is_removed_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    pieces = [b"%d %s\n" % (number, b"a" * 4000) for number in range(12)]
    with small_disk(tmp_path / "disk", num_bytes=48 << 10) as disk:
        file = AppendedFile(disk / "appended")
        for piece in pieces[:7]:
            file.append(piece)
        (disk / "appended").unlink()  # what is open still takes its room
        for piece in pieces[7:]:
            with suppress(OSError):
                file.append(piece)
        file.append(b"")
        assert (disk / "appended").read_bytes() == b"".join(pieces)


def test_what_fails_again_is_said_again(corpus: Path, tmp_path: Path) -> None:
    files = [f"data.corpus={corpus}", f"run_directory={tmp_path}"]
    config = load(RunConfig, [str(TINY_RUN), *files, "precision=fp32"])
    monitor = Monitor(config, World.here(), first_step=0, num_parameters=1)
    for fails in (True, True, False, True):
        with monitor.guard("the report"):
            assert not fails
    monitor.write(train_record(1))
    assert (tmp_path / "metrics.jsonl").read_text().count("the report: not written") == 2


def saved_step(directory: RunDirectory, checkpoints: Path | None = None) -> int:
    found = latest(Place.of(checkpoints or directory.checkpoints))
    assert found is not None
    return int(found.name.removeprefix("step_"))
