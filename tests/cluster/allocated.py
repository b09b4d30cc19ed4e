"""A keeper at a terminal, in an allocation of its own."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.terminal import Terminal
from tools.chaos.job import DEADLINE_SECONDS, Job
from tools.lab.jobs import SlurmLab

_GRANTED = re.compile(r"Granted job allocation ([0-9]+)")


class Allocated(Job):
    """A run that a person has started in an allocation, at a terminal.

    Args:
        slurm: the cluster.
        arguments: of the run.
        project: where it is started.
        directory: of the run.

    Attributes:
        status: of its exit; None before.
    """

    def __init__(
        self, slurm: SlurmLab, arguments: Sequence[str], *, project: Path, directory: Path
    ) -> None:
        self._terminal = Terminal()
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "10999"}
        self._process = subprocess.Popen(
            [
                # What was started in the background ignores it, and hands that on.
                *("env", "--default-signal=INT", "setsid", "--ctty", "--wait"),
                *("salloc", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"),
                *(".venv/bin/python", "-m", "tools.keep", "--launcher", "srun", "--no-requeue"),
                *("train", *arguments),
            ],
            cwd=project,
            env={**os.environ, **slurm.environment, **meet},
            stdin=self._terminal.follower,
            stdout=self._terminal.follower,
            stderr=self._terminal.follower,
        )
        self.status: int | None = None
        super().__init__(slurm, 0, project=project, directory=directory)
        self.wait(lambda: _GRANTED.search(self.output), "an allocation")
        found = _GRANTED.search(self.output)
        assert found is not None
        self.number = int(found[1])

    @property
    def output(self) -> str:
        """What the terminal has shown."""
        return self._terminal.screen

    def type(self, text: str) -> None:
        """Type at the terminal."""
        os.write(self._terminal.leader, text.encode())

    def end(self, *, seconds: float = DEADLINE_SECONDS) -> str:
        """Wait until it has; its state then."""
        self.status = self._process.wait(seconds)
        self._terminal.close()
        return super().end(seconds=seconds)
