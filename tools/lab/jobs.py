"""Jobs on a cluster of the lab: submitted, asked about and waited for, as a user does."""

import os
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.lab.daemons import LabError

ENDED: Final = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
)
"""States that a job does not leave."""

CALL_TIMEOUT_SECONDS: Final = 60.0


def called(
    *command: str, environment: Mapping[str, str], directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command, and return what became of it.

    Args:
        command: program and arguments.
        environment: what is in it besides this process's.
        directory: where it runs; by default where this process does.

    Raises:
        LabError: there is no answer in time.
    """
    try:
        return subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=CALL_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no answer to {' '.join(command)} in {error.timeout:.0f} s") from error


@dataclass(frozen=True)
class SlurmLab:
    """A running cluster of the lab.

    Attributes:
        directory: of the cluster.
        environment: what `sbatch` and the like need: `SLURM_CONF`.
    """

    directory: Path
    environment: dict[str, str]

    def call(
        self,
        *command: str,
        directory: Path | None = None,
        environment: Mapping[str, str] = {},
    ) -> str:
        """Run a Slurm command and return its standard output.

        Args:
            command: see `called`.
            directory: likewise.
            environment: what is in it besides the cluster's.

        Raises:
            LabError: it fails, or there is no answer in time.
        """
        given = {**self.environment, **environment}
        answer = called(*command, environment=given, directory=directory)
        if answer.returncode != 0:
            raise LabError(f"{' '.join(command)}: {answer.stderr.strip()}")
        return answer.stdout

    def submit(self, *arguments: str, directory: Path, environment: Mapping[str, str] = {}) -> int:
        """Submit a job from `directory` (`sbatch ARGUMENTS…`) and return its id.

        The job has what is in the environment, which no list of processes shows, unlike arguments.
        """
        command = ("sbatch", "--parsable", *arguments)
        return int(self.call(*command, directory=directory, environment=environment))

    def job(self, job_id: int) -> dict[str, str]:
        """Return what `scontrol show job` says, such as `JobState`, `ExitCode`, `Restarts`."""
        text = self.call("scontrol", "--oneliner", "show", "job", str(job_id))
        return dict(entry.split("=", 1) for entry in text.split() if "=" in entry)

    def wait(
        self, job_id: int, *, timeout_seconds: float, states: Collection[str] = ENDED
    ) -> dict[str, str]:
        """Wait until the job is in one of `states`, by default any end; return `job(job_id)`.

        Raises:
            LabError: it is not in time; it is cancelled then, and its output told.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            fields = self.job(job_id)
            if fields["JobState"] in states:
                return fields
            if time.monotonic() > deadline:
                self.call("scancel", str(job_id))
                output = Path(fields.get("StdOut", ""))
                shown = output.read_text() if output.is_file() else "no output"
                raise LabError(f"job {job_id} not in {sorted(states)}: {fields}\n{shown}")
            time.sleep(0.2)
