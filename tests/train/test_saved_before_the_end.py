"""What cannot be read or noted ends a run after it has saved the last step that was made."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import start, wait_for_step
from tools import ledger
from train.checkpoint.directory import latest
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.watch.metrics import read_metrics


def take_away_data(corpus: Path, _: RunDirectory) -> None:
    (corpus / "train").rename(corpus / "gone")


def put_data_back(corpus: Path, _: RunDirectory) -> None:
    (corpus / "gone").rename(corpus / "train")


def replace_ledger(_: Path, directory: RunDirectory) -> None:
    file = directory.ledger / "00001-00001.bin"  # of the second rank
    file.rename(directory.path / "moved.bin")
    file.mkdir()


def put_ledger_back(_: Path, directory: RunDirectory) -> None:
    (directory.ledger / "00001-00001.bin").rmdir()
    (directory.path / "moved.bin").rename(directory.ledger / "00001-00001.bin")


@pytest.mark.parametrize(
    ("break_it", "mend", "told"),
    [
        (take_away_data, put_data_back, "is missing"),
        (replace_ledger, put_ledger_back, r"00001-00001.bin cannot be written \(Is a directory\)"),
    ],
)
def test_it_is_saved(
    break_it: Callable[[Path, RunDirectory], None],
    mend: Callable[[Path, RunDirectory], None],
    told: str,
    tmp_path: Path,
) -> None:
    corpus, directory = tmp_path / "corpus", RunDirectory(tmp_path / "run")
    write_corpus(corpus, train=400, shard_bytes=1024)  # most shards are first opened later
    options = ("steps=400", "checkpoint.every_steps=400", "validation.every_steps=400")
    attempt = start(corpus, directory.path, *options, ranks=2)
    wait_for_step(attempt, directory.path, step=3)
    break_it(corpus, directory)
    ended = attempt.wait()
    assert ended.code == ExitStatus.MISTAKE, ended.output[-3000:]
    assert re.search(told, ended.output), ended.output[-3000:]
    assert "Traceback" not in ended.output
    made = read_metrics(directory.metrics).train[-1].step
    found = latest(Place.of(directory.checkpoints))
    assert found is not None, ended.output[-3000:]
    assert int(found.name.removeprefix("step_")) == made < 400
    mend(corpus, directory)
    again = start(corpus, directory.path, *options, ranks=2)
    wait_for_step(again, directory.path, step=made + 2)
    again.signal(signal.SIGTERM)
    assert again.wait().code == ExitStatus.SAVED
    recorded = read_metrics(directory.metrics)
    assert recorded.runs[-1].step == made
    assert ledger.main(["check", str(directory.path)]) == 0
