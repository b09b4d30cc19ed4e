"""On a GPU a run knows what came of a step one step later; nothing else may differ."""

import json
import signal
from pathlib import Path

import pytest

from parallel.later import Later
from tests.corpora import write_corpus
from tests.train.runs import run, start, train, wait_for_step
from tests.train.wrong_numbers.injected import POISON, STRUCK, broken, sample_of, struck
from tools.ledger import check_run
from train.checkpoint.directory import resolve
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.metrics import Metrics, read_metrics

STEPS = ("steps=9", "validation.every_steps=4", "checkpoint.every_steps=3")


def behind(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """A rank that must not read numbers before the next step is launched."""
    Later.is_here = property(lambda _: False)  # pyright: ignore[reportAttributeAccessIssue]
    train(arguments, output, environment)


def behind_and_broken(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """Likewise, of a model that some samples break."""
    Later.is_here = property(lambda _: False)  # pyright: ignore[reportAttributeAccessIssue]
    broken(arguments, output, environment)


def behind_and_struck(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """Likewise, with hardware that errs once."""
    Later.is_here = property(lambda _: False)  # pyright: ignore[reportAttributeAccessIssue]
    struck(arguments, output, environment)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("behind") / "corpus", train=400)


def recorded(metrics: Metrics) -> list[tuple[object, ...]]:
    train = [(r.step, r.loss, r.learning_rate, r.gradient_norm) for r in metrics.train]
    return [*train, *((r.step, r.loss) for r in metrics.validation)]


def order(directory: Path) -> list[tuple[str, int]]:
    lines = RunDirectory(directory).metrics.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["kind"], record["step"]) for record in records if "step" in record]


def test_a_run_records_the_same(corpus: Path, tmp_path: Path) -> None:
    at_once = run(corpus, tmp_path / "at_once", *STEPS, ranks=2)
    later = run(corpus, tmp_path / "later", *STEPS, ranks=2, main=behind)
    assert recorded(later) == recorded(at_once)
    assert len(later.train) == 9
    assert order(tmp_path / "later") == order(tmp_path / "at_once")
    assert all(record.step_seconds > 0 for record in later.train)


def test_a_signal_saves_the_step_that_is_under_way(corpus: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    options = ("steps=2000", "checkpoint.every_steps=2000", "validation.every_steps=2000")
    attempt = start(corpus, directory, *options, ranks=2, main=behind)
    wait_for_step(attempt, directory, step=3)
    attempt.signal(signal.SIGUSR1)
    ended = attempt.wait()
    assert ended.code == ExitStatus.SAVED, ended.output[-3000:]
    last = read_metrics(RunDirectory(directory).metrics).train[-1].step
    assert resolve(directory).name == f"step_{last:08}"
    assert check_run(directory).faults == []


@pytest.mark.parametrize("zero", [1, pytest.param(3, marks=pytest.mark.long)])
def test_what_data_break_is_found_one_step_later_and_left_out(
    zero: int, corpus: Path, tmp_path: Path
) -> None:
    """The gradients of the next step, which are made by then, are made again."""
    options = ("steps=9", "checkpoint.every_steps=3", "validation.every_steps=100")
    options = (*options, f"zero.stage={zero}")
    poison = {POISON: json.dumps([sample_of(corpus, step=step, entry=1) for step in (5, 7)])}
    found = run(
        corpus, tmp_path / "run", *options, ranks=2, main=behind_and_broken, environment=poison
    )
    told = run(corpus, tmp_path / "told", *options, "left_out=[5, 7]", ranks=2)
    assert recorded(found) == recorded(told)
    assert [each.step for each in found.left_out] == [5, 7]
    assert check_run(tmp_path / "run").faults == []


def test_what_hardware_breaks_is_found_one_step_later_and_ends_the_run(
    corpus: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    options = ("steps=9", "checkpoint.every_steps=3", "validation.every_steps=100")
    strike = {STRUCK: json.dumps([1, 7])}
    ended = start(
        corpus, directory, *options, ranks=2, main=behind_and_struck, environment=strike
    ).wait()
    assert ended.code == ExitStatus.FAULT, ended.output[-3000:]
    assert "step 7: the loss is not finite, and it is when it is computed again" in ended.output
    assert "the hardware of rank 1 on" in ended.output
    assert read_metrics(RunDirectory(directory).metrics).train[-1].step == 6
    assert resolve(directory).name == "step_00000006"


def test_data_that_end_save_the_last_step(corpus: Path, tmp_path: Path) -> None:
    own, directory = tmp_path / "corpus", tmp_path / "run"
    write_corpus(own, train=400, shard_bytes=1024)
    options = ("steps=400", "checkpoint.every_steps=400", "validation.every_steps=400")
    attempt = start(own, directory, *options, ranks=2, main=behind)
    wait_for_step(attempt, directory, step=3)
    (own / "train").rename(own / "gone")
    ended = attempt.wait()
    assert ended.code == ExitStatus.MISTAKE, ended.output[-3000:]
    last = read_metrics(RunDirectory(directory).metrics).train[-1].step
    assert f"step {last} is saved, and the run ends" in ended.output
    assert resolve(directory).name == f"step_{last:08}"
