"""A job that trains on the lab, and can be disturbed."""

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tools.chaos.processes import processes_of, ranks_of
from tools.keep.attempt import Attempt, read_attempts
from tools.lab.daemons import LabError
from tools.lab.jobs import ENDED, SlurmLab
from train.run_directory import RunDirectory

DEADLINE_SECONDS = 180.0
"""Without a sign of life."""


class Job:
    """A job that trains.

    Args:
        slurm: the cluster that it runs on.
        number: of Slurm.
        project: from where it was submitted.
        directory: of its run.

    Attributes:
        number: likewise.
        directory: likewise.
    """

    def __init__(self, slurm: SlurmLab, number: int, *, project: Path, directory: Path) -> None:
        self._slurm = slurm
        self._project = project
        self.number = number
        self.directory = directory

    @property
    def steps(self) -> list[int]:
        """Steps that have been recorded, some more than once."""
        metrics = RunDirectory(self.directory).metrics
        lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
        return [json.loads(line)["step"] for line in lines if b'"kind":"train"' in line]

    @property
    def starts(self) -> int:
        """How often the run has been started."""
        metrics = RunDirectory(self.directory).metrics
        return metrics.read_bytes().count(b'"kind":"run"') if metrics.exists() else 0

    @property
    def state(self) -> str:
        """As Slurm has it."""
        return self._slurm.job(self.number)["JobState"]

    @property
    def first_node(self) -> str:
        """On which its script and its keeper run."""
        return self._slurm.job(self.number)["BatchHost"]

    @property
    def started(self) -> float:
        """When Slurm has started it, the last time, in Unix seconds."""
        return datetime.fromisoformat(self._slurm.job(self.number)["StartTime"]).timestamp()

    @property
    def attempts(self) -> list[Attempt]:
        """What keepers have written of it."""
        return read_attempts(RunDirectory(self.directory).attempts)

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that train, by rank.

        Raises:
            LabError: there are none.
        """
        return ranks_of(self.directory)

    def keeper(self) -> psutil.Process:
        """The process that watches them."""
        [(process, _)] = processes_of(self.directory, "tools.keep")
        return process

    def wait_for_step(self, step: int) -> None:
        """Until it has been recorded."""
        self.wait(lambda: step in self.steps, f"step {step}")

    def wait(
        self, is_so: Callable[[], Any], what: str, *, seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Until something is so.

        Raises:
            LabError: it is not, and the job has said nothing for so many seconds; with its output.
        """
        seen, deadline = -1, 0.0
        while not is_so():
            if (now := self._num_bytes()) != seen:
                seen, deadline = now, time.monotonic() + seconds
            if time.monotonic() > deadline:
                raise LabError(f"waited for {what}:\n{self.output}")
            time.sleep(0.05)

    def _num_bytes(self) -> int:
        """That it has written: signs of life."""
        metrics = RunDirectory(self.directory).metrics
        paths = [*self._project.glob(f"slurm-*-{self.number}.out"), metrics]
        return sum(path.stat().st_size for path in paths if path.exists())

    def end(self, *, seconds: float = DEADLINE_SECONDS) -> str:
        """Wait until it has; its state then.

        Raises:
            LabError: it does not, see `wait`; it is cancelled then.
        """
        try:
            self.wait(lambda: self.state in ENDED, "its end", seconds=seconds)
        except LabError:
            self._slurm.call("scancel", str(self.number))
            raise
        return self.state

    @property
    def output(self) -> str:
        """What it has printed."""
        [path] = self._project.glob(f"slurm-*-{self.number}.out")
        return path.read_text()
