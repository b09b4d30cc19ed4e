"""Real runs for tests: `python -m train` on one or two ranks, as a launcher would start it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from train.metrics import FILE_NAME, Metrics, read_metrics

TINY_RUN = Path(__file__).parent.parent / "tiny_run.yaml"
DEADLINE_SECONDS = 120


@dataclass(frozen=True)
class Finished:
    """How a run ended: the worst exit status and all ranks' output."""

    code: int
    output: str


class Run:
    """Ranks of one run, started."""

    def __init__(self, arguments: list[str], *, ranks: int, environment: Mapping[str, str]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "train", *arguments],
                env={
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
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(ranks)
        ]

    def wait(self) -> Finished:
        deadline = time.monotonic() + DEADLINE_SECONDS
        outputs: list[str] = []
        for process in self.processes:
            try:
                output, _ = process.communicate(timeout=max(1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                # A hang: every rank shows its stacks.
                stacks = [self._stacks(each) for each in self.processes]
                raise AssertionError("\n".join(["the run hangs", *stacks])) from None
            outputs.append(output)
        codes = [process.returncode for process in self.processes]
        return Finished(max(codes, key=abs), "\n".join(outputs))

    def signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _stacks(self, process: subprocess.Popen[str]) -> str:
        process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=10)[0][-8000:]
        process.kill()
        return "(no answer)"


def start(
    corpus: Path | str,
    directory: Path,
    *overrides: str,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Start the tiny run."""
    arguments = [str(TINY_RUN), f"data.corpus={corpus}", f"run_directory={directory}", *overrides]
    return Run(arguments, ranks=ranks, environment=environment or {})


def run(
    corpus: Path | str,
    directory: Path,
    *overrides: str,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Metrics:
    """Run the tiny run to its end; what it recorded."""
    finished = start(corpus, directory, *overrides, ranks=ranks, environment=environment).wait()
    assert finished.code == 0, finished.output[-6000:]
    return read_metrics(directory / FILE_NAME)


def kill_at(run: Run, directory: Path, *, step: int) -> None:
    """Wait until the run has recorded a step, then kill all ranks at once."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if any(seen >= step for seen in _steps(directory)):
            run.signal(signal.SIGKILL)
            for process in run.processes:
                process.wait()
            return
        if all(process.poll() is not None for process in run.processes):
            raise AssertionError(f"the run ended before step {step}: {run.wait().output[-3000:]}")
        time.sleep(0.005)
    raise AssertionError(f"the run never reached step {step}")


def _steps(directory: Path) -> Iterator[int]:
    with contextlib.suppress(Exception):
        yield from (record.step for record in read_metrics(directory / FILE_NAME).train)
