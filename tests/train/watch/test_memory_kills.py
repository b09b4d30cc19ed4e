"""The kernel's counts of kills, as it and Slurm lay them out; groups of our own need rights."""

from pathlib import Path

import pytest

from train.watch.memory_kills import out_of_memory_kills


def group(place: Path, kills: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "memory.events").write_text(f"low 0\nhigh 3\noom {kills}\noom_kill {kills}\n")


@pytest.mark.parametrize(
    ("own", "kills"),
    [
        ("0::/system.slice/slurmstepd.scope/job_7/step_1/user/task_0", 2),
        ("1:name=systemd:/elsewhere\n0::/system.slice/slurmstepd.scope/job_7", 2),
        ("0::/system.slice/slurmstepd.scope/job_8/step_0", 0),  # it says nothing
        ("0::/", 5),
        ("0::/user.slice/some.service", 5),
        ("4:memory:/slurm/uid_0/job_7/step_1", 5),  # cgroup v1 does not add up
        ("", 5),
    ],
)
def test_which_count_it_is(tmp_path: Path, own: str, kills: int) -> None:
    group(tmp_path, 5)
    group(tmp_path / "system.slice/slurmstepd.scope/job_7", 2)
    group(tmp_path / "system.slice/slurmstepd.scope/job_7/step_1", 1)
    told = tmp_path / "own"
    told.write_text(f"{own}\n")
    assert out_of_memory_kills(groups=tmp_path, own_group=told) == kills


def test_where_there_are_no_groups(tmp_path: Path) -> None:
    assert out_of_memory_kills(groups=tmp_path, own_group=tmp_path / "none") == 0
