"""Real runs for tests: `python -m train` on one or two ranks, as a launcher would start it."""

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests import warm
from tools.ranks import run_module
from train.run_directory import RunDirectory
from train.watch.metrics import Metrics, read_metrics

TINY_RUN = Path(__file__).parent.parent / "tiny_run.yaml"
DEADLINE_SECONDS = 120

Main = Callable[[list[str], Path, dict[str, str]], None]
"""A process of a run: its arguments, where its output goes, its environment."""

train: Main = partial(run_module, "train")
"""`python -m train`."""


@dataclass(frozen=True)
class Finished:
    """How a run ended: the worst exit status and all ranks' output."""

    code: int
    output: str


class Rank:
    """One process of a run, as far as `subprocess.Popen` has the same."""

    def __init__(self, arguments: list[str], output: Path, environment: dict[str, str], main: Main):
        # A daemon: one that hangs must not keep the tests from ending.
        self._process = warm.context().Process(
            target=main, args=(arguments, output, environment), daemon=True
        )
        self._output = output
        self._process.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """The exit status, None if it still runs after the time."""
        self._process.join(timeout_seconds)
        return self.poll()

    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text() if self._output.is_file() else ""


class Run:
    """Ranks of one run, started."""

    def __init__(
        self,
        arguments: list[str],
        *,
        ranks: int,
        environment: Mapping[str, str],
        last_rank: Sequence[str] = (),
        output: Path | None = None,
        main: Main | None = None,
    ):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._directory = tempfile.TemporaryDirectory(prefix="run-")
        self.ranks = [
            Rank(
                [*arguments, *(last_rank if rank == ranks - 1 else ())],
                output or Path(self._directory.name) / f"output-{rank}",
                {
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "LOCAL_WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    **environment,
                },
                main or train,
            )
            for rank in range(ranks)
        ]

    def wait(self, seconds: float = DEADLINE_SECONDS) -> Finished:
        deadline = time.monotonic() + seconds
        codes: list[int] = []
        for rank in self.ranks:
            code = rank.wait(max(1, deadline - time.monotonic()))
            if code is None:
                # A hang: every rank shows its stacks.
                stacks = [self._stacks(each) for each in self.ranks]
                raise AssertionError("\n".join(["the run hangs", *stacks]))
            codes.append(code)
        return Finished(max(codes, key=abs), "\n".join(rank.output() for rank in self.ranks))

    def signal(self, number: signal.Signals) -> None:
        for rank in self.ranks:
            rank.send_signal(number)

    def _stacks(self, rank: Rank) -> str:
        rank.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
        if rank.wait(10) is None:
            rank.send_signal(signal.SIGKILL)
        return rank.output()[-8000:]


def start(
    corpus: Path | str,
    directory: Path,
    *overrides: str,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
    last_rank: Sequence[str] = (),
    output: Path | None = None,
    main: Main | None = None,
) -> Run:
    """Start the tiny run.

    Args:
        corpus: what it reads.
        directory: of the run.
        overrides: of the configuration.
        ranks: processes.
        environment: what is in it besides.
        last_rank: overrides of the last rank alone.
        output: a file, pipe or terminal to which all ranks write; None keeps it for `Finished`.
        main: what each process does instead of `train`.
    """
    arguments = [str(TINY_RUN), f"data.corpus={corpus}", f"run_directory={directory}", *overrides]
    return Run(
        arguments,
        ranks=ranks,
        environment=environment or {},
        last_rank=last_rank,
        output=output,
        main=main,
    )


def run(
    corpus: Path | str,
    directory: Path,
    *overrides: str,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
    main: Main | None = None,
) -> Metrics:
    """Run the tiny run to its end; what it recorded."""
    finished = start(
        corpus, directory, *overrides, ranks=ranks, environment=environment, main=main
    ).wait()
    assert finished.code == 0, finished.output[-6000:]
    return read_metrics(RunDirectory(directory).metrics)


def kill_at(run: Run, directory: Path, *, step: int) -> None:
    """Wait until the run has recorded a step, then kill all ranks at once."""
    wait_for_step(run, directory, step=step)
    run.signal(signal.SIGKILL)
    for rank in run.ranks:
        rank.wait()


def wait_for_step(run: Run, directory: Path, *, step: int) -> None:
    """Until the run has recorded a step."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if any(seen >= step for seen in _steps(directory)):
            return
        if all(rank.poll() is not None for rank in run.ranks):
            raise AssertionError(f"the run ended before step {step}: {run.wait().output[-3000:]}")
        time.sleep(0.02)
    raise AssertionError(f"the run never reached step {step}")


def _steps(directory: Path) -> Iterator[int]:
    with contextlib.suppress(Exception):
        yield from (record.step for record in read_metrics(RunDirectory(directory).metrics).train)
