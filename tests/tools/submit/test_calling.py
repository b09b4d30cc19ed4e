"""Slurm's commands do what they are told, whatever a user has set for himself."""

import time
from pathlib import Path

import pytest

from tools.keep.nodes import called
from tools.lab.jobs import SlurmLab
from tools.submit import calling
from tools.submit.__main__ import submitted

OF_A_USER = {
    "SQUEUE_STATES": "SUSPENDED",
    "SQUEUE_PARTITION": "another",
    "SQUEUE_NAMES": "another",
    "SCANCEL_INTERACTIVE": "1",
    "SCANCEL_STATE": "SUSPENDED",
    "SBATCH_WAIT": "1",
    "SBATCH_ARRAY_INX": "0-3",
}


@pytest.fixture
def lab(slurm_lab: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmLab:
    for name, value in slurm_lab.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return slurm_lab


def test_a_users_own_defaults_hide_no_job(
    lab: SlurmLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calling.state_of("1000000") is None
    for name, value in OF_A_USER.items():
        monkeypatch.setenv(name, value)
    job = calling.submit(["sbatch", "--parsable", "--hold", "--wrap=true"], {})
    assert [(each.number, each.array) for each in calling.jobs()] == [(job, job)]
    assert calling.state_of(str(job)) == "PENDING"
    assert called("squeue", "--noheader", "--format=%A") == f"{job}\n"
    calling.cancel([job])
    until = time.monotonic() + 30
    while calling.jobs():
        assert time.monotonic() < until, calling.jobs()
        time.sleep(0.1)


def test_ctrl_c_leaves_no_part_of_a_chain(lab: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = calling.submit
    numbers: list[int] = []

    def interrupted(*arguments: object) -> int:
        if numbers:
            raise KeyboardInterrupt
        numbers.append(real(*arguments))  # pyright: ignore[reportArgumentType]
        return numbers[0]

    monkeypatch.setattr(calling, "submit", interrupted)
    command = ["sbatch", "--parsable", "--hold", "--wrap=true"]
    with pytest.raises(KeyboardInterrupt):
        submitted(command, [], [{}, {}, {}], runs=[])
    assert lab.wait(numbers[0], timeout_seconds=180)["JobState"] == "CANCELLED"
