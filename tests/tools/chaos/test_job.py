"""A job on the lab that is waited for."""

from pathlib import Path

import pytest

from tools.chaos.job import Job
from tools.lab.daemons import LabError
from tools.lab.jobs import SlurmLab


def test_one_that_says_nothing_is_cancelled(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    flags = ("--output=slurm-%x-%j.out", "--wrap=echo begun; sleep 300")
    number = slurm_lab.submit(*flags, directory=tmp_path)
    job = Job(slurm_lab, number, project=tmp_path, directory=tmp_path / "run")
    job.wait(lambda: any(path.read_text() for path in tmp_path.glob("*.out")), "its first word")
    with pytest.raises(LabError, match="waited for its end:\nbegun"):
        job.end(seconds=1.0)
    assert slurm_lab.wait(number, timeout_seconds=180)["JobState"] == "CANCELLED"
