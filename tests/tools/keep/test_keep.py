"""A keeper and the ranks that it keeps going: real runs, which processes are taken out of."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.fault_lab import losses_of
from tests.train.runs import TINY_RUN, Rank, run, start
from tools.keep.__main__ import main
from tools.keep.attempt import ATTEMPTS_NAME, Attempt, Attempts, read_attempts
from tools.keep.listening import Listener
from tools.ranks import run_module
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.heartbeat import ADDRESS
from train.watch.metrics import read_metrics

STEPS = 30
CALM = (
    *(f"steps={STEPS}", "checkpoint.every_steps=5", f"validation.every_steps={STEPS}"),
    *("watch.wandb=disabled", "precision=fp32"),
)


class Process:
    """What the keeper takes for a `subprocess.Popen`: a process whose imports are done."""

    started: list["Process"]
    output: Path

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: dict[str, str],
        stdin: int,
        start_new_session: bool,
    ) -> None:
        assert stdin == subprocess.DEVNULL
        assert start_new_session
        arguments = list(command[command.index("train") + 1 :])
        self.rank = int(env["RANK"])
        self._process = Rank(arguments, self.output, env, _in_session)
        self.started.append(self)
        while os.getpgid(self.pid) != self.pid:  # of a real one it is, once it is made
            time.sleep(0.002)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        return self._process.wait(timeout)

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


def _in_session(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run_module("train", arguments, output, environment)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=160, validation=8)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    run(corpus, directory, *CALM, ranks=2)
    return directory


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Process]]:
    Process.started, Process.output = [], tmp_path / "output"
    monkeypatch.setattr("tools.keep.launching.Popen", Process)
    # Deadlines are short, and a look at a process takes its time.
    monkeypatch.setattr("tools.keep.watching._LOOK_AGAIN_SECONDS", 1.0)
    yield Process.started
    assert all(process.poll() is not None for process in Process.started), "one was left"


def keep(corpus: Path, directory: Path, *overrides: str, options: Sequence[str] = ()) -> int:
    arguments = [str(TINY_RUN), f"data.corpus={corpus}", f"run_directory={directory}"]
    ranks = ["--ranks", "2", "--threads", "1", *options]
    return main([*ranks, "train", *arguments, *CALM, *overrides])


def attempts_of(directory: Path) -> list[Attempt]:
    return read_attempts(directory / ATTEMPTS_NAME)


class Disturbed(threading.Thread):
    """Does something to a run once it has made a step."""

    def __init__(self, directory: Path, step: int) -> None:
        super().__init__(daemon=True)
        self._metrics = RunDirectory(directory).metrics
        self._step = step

    def run(self) -> None:
        while not (self._metrics.exists() and self._has_come()):
            time.sleep(0.03)  # each look reads all
        self.disturb()

    def _has_come(self) -> bool:
        return any(record.step >= self._step for record in read_metrics(self._metrics).train)

    def disturb(self) -> None:
        raise NotImplementedError


class Signalled(Disturbed):
    """Sends a signal to a rank of the first start, or to the keeper."""

    def __init__(
        self,
        directory: Path,
        step: int,
        number: signal.Signals,
        processes: list[Process] | None = None,
    ) -> None:
        super().__init__(directory, step)
        self._number = number
        self._processes = processes

    def disturb(self) -> None:
        if self._processes is None:
            os.kill(os.getpid(), self._number)
        else:
            self._processes[1].send_signal(self._number)


@pytest.mark.parametrize(
    ("number", "kind", "options"),
    [
        (signal.SIGKILL, "dead", ()),
        pytest.param(
            *(signal.SIGSTOP, "stopped", ("--warm", "--least-seconds", "2")),
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_rank_that_is_lost(
    corpus: Path,
    undisturbed: Path,
    processes: list[Process],
    tmp_path: Path,
    number: signal.Signals,
    kind: str,
    options: Sequence[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "run"
    Signalled(directory, 12, number, processes).start()
    assert keep(corpus, directory, options=options) == ExitStatus.COMPLETE
    first, last = attempts_of(directory)
    verdict = first.verdict
    assert (verdict.kind, verdict.rank, verdict.is_sure) == (kind, 1, True)
    assert verdict.step is not None
    assert verdict.step >= 12
    assert f"keeper: {verdict.sentence}: starting again" in capfd.readouterr().err
    assert (last.verdict.kind, last.first_step, last.last_step) == ("complete", 10, STEPS)
    # What is made twice is the same both times.
    assert losses_of(directory) == losses_of(undisturbed)
    if options:
        assert [process.rank for process in processes[:4]] == [0, 1, 0, 1]


def test_what_a_user_must_change(
    corpus: Path, processes: list[Process], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert keep(corpus, tmp_path / "run", "optim.lrr=1") == ExitStatus.MISTAKE
    assert len(processes) == 2
    assert "not started again, for it would fail again" in capfd.readouterr().err
    assert "optim.lrr" in Process.output.read_text()


def test_asked_to_stop_it_saves_and_goes_on_another_time(
    corpus: Path,
    undisturbed: Path,
    processes: list[Process],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "run"
    Signalled(directory, 8, signal.SIGTERM).start()
    # Attempts lie in the run's directory by whatever name a user calls it.
    monkeypatch.setenv("RUNS", str(tmp_path))
    assert keep(corpus, Path("$RUNS/run")) == ExitStatus.SAVED
    assert keep(corpus, directory) == ExitStatus.COMPLETE
    first, second = attempts_of(directory)
    assert (first.verdict.kind, second.verdict.kind) == ("stopped by a signal", "complete")
    assert second.first_step == first.last_step
    assert losses_of(directory) == losses_of(undisturbed)


def test_a_run_whose_keeper_has_gone_saves_and_stops(corpus: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with Listener() as listener:
        ranks = start(corpus, directory, *CALM, ranks=2, environment={ADDRESS: listener.address})
        deadline = time.monotonic() + 60
        while (listener.last_step or 0) < 7:
            listener.listen(0.1)
            assert time.monotonic() < deadline
    assert ranks.wait().code == ExitStatus.SAVED
    saved = [path.name for path in RunDirectory(directory).checkpoints.glob("step_*")]
    assert any(int(name.removeprefix("step_")) >= 7 for name in saved)


def test_half_a_line_of_a_keeper_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / ATTEMPTS_NAME
    verdict = {"kind": "dead", "sentence": "dead"}
    whole = Attempt.model_validate(
        {"started": 1.0, "ended": 2.0, "num_ranks": 2, "status": 137, "verdict": verdict}
    )
    path.write_text(whole.model_dump_json() + '\n{"started": 3.0, "en')
    attempts = Attempts(print)
    attempts.found_in(tmp_path)
    assert attempts.all == [whole]
    attempts.add(whole)
    assert attempts_of(tmp_path) == [whole, whole]


@pytest.mark.parametrize("content", ["{}\n", None])
def test_attempts_that_cannot_be_kept_end_nothing(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / ATTEMPTS_NAME
    path.mkdir() if content is None else path.write_text(content)
    told: list[str] = []
    attempts = Attempts(told.append)
    for _ in range(3):
        attempts.found_in(tmp_path)
    assert len(told) == 1
    assert "attempts are not kept" in told[0]
    verdict = {"kind": "dead", "sentence": "dead"}
    attempt = Attempt.model_validate(
        {"started": 1.0, "ended": 2.0, "num_ranks": 2, "status": 137, "verdict": verdict}
    )
    attempts.add(attempt)
    assert attempts.all == [attempt]
