"""Jobs on a cluster of the lab: submitted, asked about and waited for, as a user does."""

import os
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.lab.daemons import LabError

ENDED: Final = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
)
"""States that a job does not leave."""

_CALL_SECONDS: Final = 60.0


@dataclass(frozen=True)
class SlurmLab:
    """A running cluster of the lab.

    Attributes:
        directory: of the cluster.
        environment: what `sbatch` and the like need: `SLURM_CONF`.
    """

    directory: Path
    environment: dict[str, str]

    def call(self, *command: str, directory: Path | None = None) -> str:
        """Run a Slurm command and return its standard output.

        Raises:
            LabError: it fails.
        """
        answer = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=_CALL_SECONDS,
            check=False,
        )
        if answer.returncode != 0:
            raise LabError(f"{' '.join(command)}: {answer.stderr.strip()}")
        return answer.stdout

    def submit(self, *arguments: str, directory: Path) -> int:
        """Submit a job from `directory` (`sbatch ARGUMENTS…`) and return its id."""
        return int(self.call("sbatch", "--parsable", *arguments, directory=directory))

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
