"""A Slurm cluster and an S3 server for the tests that need one; each starts once a session.

`tests/conftest.py` makes them known with `pytest_plugins = ["tests.lab_fixtures"]`. Where Slurm is
not installed the tests fail, with the command that installs it: skipping would hide that nothing
was tested.
"""

import os
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.lab import s3, slurm
from train.storage.place import Place

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"})


@dataclass(frozen=True)
class SlurmLab:
    """A running cluster of two nodes with two CPUs each."""

    directory: Path
    environment: dict[str, str]
    """What `sbatch` and the like need: `SLURM_CONF`."""

    def call(self, *command: str, directory: Path | None = None) -> str:
        """Run a Slurm command and return its standard output; fail the test if it fails."""
        answer = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr}"
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

        On a timeout the job is cancelled and the test fails with the job's output.
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
                pytest.fail(f"job {job_id} not in {sorted(states)}: {fields}\n{shown}")
            time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    directory = tmp_path_factory.mktemp("slurm")
    record = slurm.up(directory, num_nodes=2, num_cpus=2)
    try:
        yield SlurmLab(directory, record.environment)
    finally:
        slurm.down(directory)


@dataclass(frozen=True)
class S3Lab:
    """A running S3 server that holds the bucket `lab`."""

    directory: Path
    environment: Mapping[str, str]
    """What S3 clients need: `S3_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID` and so on."""
    bucket: str = "lab"


def place_at(kind: str, name: str, request: pytest.FixtureRequest) -> Place:
    """A place of a test's own: "here", in its temporary directory, or "in a store"."""
    directory: Path = request.getfixturevalue("tmp_path")
    if kind == "here":
        return Place.of(directory / name)
    lab: S3Lab = request.getfixturevalue("s3_lab")
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for variable, value in lab.environment.items():
        patch.setenv(variable, value)
    return Place.parse(f"s3://{lab.bucket}/{name}/{directory.name}")


@pytest.fixture(scope="session")
def s3_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Lab]:
    directory = tmp_path_factory.mktemp("s3")
    record = s3.up(directory, bucket=S3Lab.bucket)
    try:
        yield S3Lab(directory, record.environment)
    finally:
        s3.down(directory)
