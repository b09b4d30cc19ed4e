"""A killed run continues as if it had never stopped: the same losses to the last bit."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import kill_at, run, start
from tools.ledger import check_run
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.exit_status import ExitStatus
from train.preemption import Preemption
from train.run_directory import RunDirectory, kept_tokenizer
from train.storage.place import Place
from train.watch.metrics import Metrics, read_metrics

STEPS = "steps=24"
LAYOUT = (
    "zero.stage=3",
    "checkpoint.every_steps=5",
    "validation.every_steps=10",
    "watch.norms_every_steps=3",
)
DROPOUT = ("model.decoder.dropout=0.1", "model.encoders.text.encoder.dropout=0.1")
"""So that a resumed run must draw what the uninterrupted one drew."""


def numbers(metrics: Metrics) -> list[tuple[object, ...]]:
    train = [
        (r.step, r.loss, r.first_of_span_loss, r.learning_rate, r.gradient_norm, r.scored_tokens)
        for r in metrics.train
    ]
    norms = [(r.step, r.gradient_norms) for r in metrics.train if r.gradient_norms]
    assert len(norms) == len(metrics.train) // 3
    return [*train, *norms, *((r.step, r.loss, r.scored_tokens) for r in metrics.validation)]


STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    return run(corpus, tmp_path_factory.mktemp("run") / "whole", STEPS, *LAYOUT, *DROPOUT, ranks=2)


def test_killed_and_resumed_twice(corpus: Path, uninterrupted: Metrics, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    for step in (8, 17):
        attempt = start(corpus, directory, STEPS, *LAYOUT, *DROPOUT, ranks=2)
        kill_at(attempt, directory, step=step)
    resumed = run(corpus, directory, STEPS, *LAYOUT, *DROPOUT, ranks=2)
    assert resumed.runs[0].step == 0
    assert len({record.step for record in resumed.runs}) >= 2, "it never resumed"
    assert numbers(resumed) == numbers(uninterrupted)


def test_signal_saves_and_stops_with_its_own_status(
    corpus: Path, uninterrupted: Metrics, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    attempt = start(corpus, directory, STEPS, *LAYOUT, *DROPOUT, ranks=2)
    deadline_step = 7
    while not _reached(directory, deadline_step) and attempt.ranks[0].poll() is None:
        time.sleep(0.02)
    attempt.ranks[1].send_signal(signal.SIGUSR1)  # one rank is told; both must stop
    finished = attempt.wait()
    assert finished.code == ExitStatus.SAVED, finished.output[-3000:]
    stopped_at = read_metrics(RunDirectory(directory).metrics).train[-1].step
    assert stopped_at < 24
    resumed = run(corpus, directory, STEPS, *LAYOUT, *DROPOUT, ranks=2)
    assert resumed.runs[-1].step == stopped_at, "no step was repeated"
    assert resumed.notes[-1].text.startswith(f"continuing from {directory}/checkpoints/step_")
    assert numbers(resumed) == numbers(uninterrupted)


@pytest.mark.long  # more layouts, daily: test_layouts
def test_other_layouts_continue(corpus: Path, tmp_path: Path) -> None:
    """ZeRO-3 on two ranks, then one rank, then ZeRO-1 on two: the same global batches.

    At a calm rate: training amplifies what layouts round differently, at this one not beyond 1e-5.
    """
    calm = (STEPS, *LAYOUT, "optim.lr=1e-3")
    uninterrupted = run(corpus, tmp_path / "whole", *calm)
    directory = tmp_path / "run"
    attempt = start(corpus, directory, *calm, ranks=2)
    kill_at(attempt, directory, step=8)
    attempt = start(corpus, directory, *calm, "batch.micro_sequences=4", ranks=1)
    kill_at(attempt, directory, step=17)
    resumed = run(corpus, directory, *calm, "zero.stage=1", ranks=2)
    for here, there in zip(resumed.train, uninterrupted.train, strict=True):
        assert here.step == there.step
        assert here.loss == pytest.approx(there.loss, rel=1e-5)
        assert here.scored_tokens == there.scored_tokens
        assert here.learning_rate == there.learning_rate


def test_complete_run_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(corpus, directory, "steps=2", "optim.warmup_steps=1")
    before = RunDirectory(directory).metrics.read_bytes()
    again = start(corpus, directory, "steps=2", "optim.warmup_steps=1").wait()
    assert again.code == 0
    assert "is complete" in again.output
    assert "it has read" not in again.output
    other = start(tmp_path / "another", directory, "steps=2", "optim.warmup_steps=1").wait()
    assert other.code == 0
    assert f"it has read {corpus}, and nothing of {tmp_path}/another: to read on" in other.output
    assert RunDirectory(directory).metrics.read_bytes() == before


def test_complete_run_under_another_name(corpus: Path, tmp_path: Path) -> None:
    """Its checkpoints are found, and nothing else of it."""
    steps = ("steps=2", "optim.warmup_steps=1", f"checkpoint.directory={tmp_path / 'saved'}")
    run(corpus, tmp_path / "run", *steps)
    again = start(corpus, tmp_path / "other", *steps).wait()
    assert again.code == 0
    assert f"is complete: {tmp_path / 'saved'}/step_00000002 is its last" in again.output
    assert not (tmp_path / "other").exists()


def test_an_unfinished_run_under_another_name(corpus: Path, tmp_path: Path) -> None:
    """It goes on there, says where the rest is, and its ledger is sound."""
    saved, there, here = (tmp_path / name for name in ("saved", "there", "here"))
    steps = ("steps=4", "optim.warmup_steps=1", f"checkpoint.directory={saved}")
    whole = run(corpus, there, *steps)
    (saved / "latest").write_text("step_00000002\n")
    half = run(corpus, here, *steps)
    assert [(r.step, r.loss) for r in half.train] == [(r.step, r.loss) for r in whole.train[2:]]
    assert half.notes[0].text == (
        f"continuing from {saved}/step_00000002; metrics and ledger of its 2 steps stay in {there} "
        "and begin here"
    )
    # Beside the checkpoints lies what is not this run's.
    (tmp_path / "tokenizer.json").write_text("{}")
    newest = resolve(saved)
    assert kept_tokenizer(newest, read_state(newest).model_dump()) == Place.of(
        here / "tokenizer.json"
    )
    for directory, begun in ((there, 0), (here, 2)):
        findings = check_run(directory)
        assert (findings.begun, findings.steps, findings.faults) == (begun, 4 - begun, [])


def test_ctrl_c_saves_and_says_how_to_go_on(corpus: Path, tmp_path: Path) -> None:
    attempt = start(corpus, tmp_path / "run", "steps=100000", "validation.every_steps=1000")
    while not _reached(tmp_path / "run", 3) and attempt.ranks[0].poll() is None:
        time.sleep(0.02)
    attempt.signal(signal.SIGINT)
    ended = attempt.wait()
    assert ended.code == ExitStatus.SAVED, ended.output[-3000:]
    assert ended.output.count("saving and stopping after this step; Ctrl-C again ends") == 1
    assert "on a signal; run again to continue" in ended.output
    assert "Traceback" not in ended.output


def test_ctrl_c_twice_ends_at_once(corpus: Path, tmp_path: Path) -> None:
    """Even in the middle of a step that takes long."""
    slow = ("steps=100000", "batch={sequences: 4096, micro_sequences: 1}", "optim.warmup_steps=1")
    attempt = start(corpus, tmp_path / "run", *slow)
    while not RunDirectory(tmp_path / "run").metrics.exists() and attempt.ranks[0].poll() is None:
        time.sleep(0.01)
    attempt.signal(signal.SIGINT)
    # Two signals that a busy process has not taken yet are one.
    while "Ctrl-C again" not in attempt.ranks[0].output() and attempt.ranks[0].poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    assert attempt.ranks[0].poll() is None
    attempt.signal(signal.SIGINT)
    ended = attempt.wait()
    assert ended.code == ExitStatus.INTERRUPTED, ended.output[-3000:]
    assert "the same command goes on from the last checkpoint" in ended.output
    assert "Traceback" not in ended.output


@pytest.fixture
def signals_kept() -> Iterator[None]:
    """What the tests' own process does on a signal is put back."""
    kept = {each: signal.getsignal(each) for each in STOPPING}
    yield
    for each, handler in kept.items():
        signal.signal(each, handler)


@pytest.mark.usefixtures("signals_kept")
def test_a_launcher_passes_on_what_the_terminal_has_sent_too() -> None:
    """The second of two that come together is no second Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    preemption = Preemption()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert preemption.requested
    time.sleep(0.2)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def _reached(directory: Path, step: int) -> bool:
    path = RunDirectory(directory).metrics
    return path.exists() and len(read_metrics(path).train) >= step


@pytest.mark.usefixtures("signals_kept")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_was_ignored_stays_ignored(number: signal.Signals) -> None:
    """As nohup has SIGHUP, and shells SIGINT of what they start in the background."""
    signal.signal(number, signal.SIG_IGN)
    preemption = Preemption()
    signal.raise_signal(number)
    assert not preemption.requested
    signal.raise_signal(signal.SIGTERM)
    assert preemption.requested
