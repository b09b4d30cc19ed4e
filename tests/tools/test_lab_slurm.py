"""The Slurm cluster of the lab, and slurm/*.sh on it with a stand-in for the trainer."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.chaos.project import make_project
from tools.lab import daemons, jobs, slurm
from tools.lab.daemons import LabError, Record, is_alive
from tools.lab.jobs import SlurmLab

REPOSITORY = Path(__file__).resolve().parents[2]

PRETRAIN = ("--ntasks-per-node=1", "slurm/pretrain.sh")
WAIT_SECONDS = 180.0
"""Against a hang."""
STEP_SOCKET = "/node1/node1_999999.4294967295"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory to submit from, whose `train` is the stand-in."""
    make_project(tmp_path, main=(Path(__file__).parent / "stand_in_trainer.py").read_text())
    (tmp_path / "config.yaml").touch()
    return tmp_path


def read_output(project: Path, job_id: int, *, name: str = "pretrain") -> str:
    return (project / f"slurm-{name}-{job_id}.out").read_text()


def read_steps(project: Path) -> list[str]:
    path = project / "run" / "steps.txt"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition: Callable[[], bool], *, timeout_seconds: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_one_task_on_each_of_two_nodes(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    command = "srun --label bash -c 'echo $SLURMD_NODENAME $SLURM_PROCID of $SLURM_NTASKS'"
    job_id = slurm_lab.submit(
        "--nodes=2", "--ntasks-per-node=1", "--output=out.txt", f"--wrap={command}",
        directory=tmp_path,
    )  # fmt: skip
    fields = slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    assert (fields["JobState"], fields["NumTasks"]) == ("COMPLETED", "2")
    lines = sorted((tmp_path / "out.txt").read_text().splitlines())
    assert lines == ["0: node1 0 of 2", "1: node2 1 of 2"]


def test_a_job_has_what_it_is_given_and_not_what_is_there(
    slurm_lab: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP_OPTIONS", "--warm")
    job_id = slurm_lab.submit(
        *("--output=out.txt", "--wrap=echo $KEEP_OPTIONS"),
        directory=tmp_path,
        environment={"KEEP_OPTIONS": "--least-seconds=3,5"},
    )
    assert slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)["JobState"] == "COMPLETED"
    assert (tmp_path / "out.txt").read_text() == "--least-seconds=3,5\n"


def test_a_command_without_an_answer_is_told(
    slurm_lab: SlurmLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CALL_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(LabError, match="no answer to sleep 30 in 0 s"):
        slurm_lab.call("sleep", "30")


def test_up_twice_is_one_cluster(slurm_lab: SlurmLab) -> None:
    before = Record.load(slurm_lab.directory)
    assert before is not None
    assert slurm.up(slurm_lab.directory) == before
    with pytest.raises(LabError, match="another size already runs"):
        slurm.up(slurm_lab.directory, num_nodes=3)
    assert "node2 idle main* 2" in slurm.status(before)
    with pytest.raises(LabError, match="node3: is no node of this lab: name one of node1, node2"):
        slurm.kill_node(before, "node3")


def test_a_node_that_was_killed_comes_back(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    record = Record.load(slurm_lab.directory)
    assert record is not None
    slurm.kill_node(record, "node2")
    assert Record.running(slurm_lab.directory) is None
    assert slurm.dead_nodes(record) == ["node2"]
    slurm.revive_node(record, "node2")
    assert slurm.dead_nodes(record) == []
    job_id = slurm_lab.submit(
        "--nodelist=node2", "--output=out.txt", "--wrap=echo $SLURMD_NODENAME", directory=tmp_path
    )
    assert slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)["JobState"] == "COMPLETED"
    assert (tmp_path / "out.txt").read_text() == "node2\n"
    # What is taken down later knows it.
    assert Record.running(slurm_lab.directory) == record


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_scripts_complete(
    slurm_lab: SlurmLab, project: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when submitted from within another launcher, whose rank is not the job's.
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "8")
    job_id = slurm_lab.submit(
        *(PRETRAIN if name == "pretrain" else (f"slurm/{name}.sh",)),
        *("config.yaml", "run_directory=run"),
        directory=project,
    )
    fields = slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    assert fields["JobState"] == "COMPLETED", read_output(project, job_id, name=name)
    assert read_steps(project) == [f"{step} sum=2 restart=0" for step in range(5)]


@pytest.mark.long  # tests/train/test_slurm_run.py has the trainer itself preempted
def test_a_preempted_job_saves_requeues_and_continues(slurm_lab: SlurmLab, project: Path) -> None:
    job_id = slurm_lab.submit(
        *PRETRAIN, "config.yaml", "run_directory=run", "stand_in.num_steps=40",
        directory=project,
    )  # fmt: skip
    wait_for(lambda: len(read_steps(project)) >= 3)
    urgent = slurm_lab.submit(
        "--partition=high", "--nodes=2", "--exclusive", "--wrap=true", directory=project
    )
    assert slurm_lab.wait(urgent, timeout_seconds=WAIT_SECONDS)["JobState"] == "COMPLETED"
    fields = slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    output = read_output(project, job_id)
    assert fields["JobState"] == "COMPLETED", output
    assert fields["Restarts"] == "1"
    assert "SIGUSR1 received" in output
    assert "saved; requeued to continue" in output
    steps = read_steps(project)
    # Every step once, in order, by two ranks, the last ones after the restart.
    assert [line.rsplit(" ", 1)[0] for line in steps] == [f"{step} sum=2" for step in range(40)]
    assert steps[0].endswith("restart=0")
    assert steps[-1].endswith("restart=1")


def test_ranks_told_to_terminate_save_and_the_job_requeues(
    slurm_lab: SlurmLab, project: Path
) -> None:
    """So does a cluster preempt that is not told to send the user's signal: TERM to ranks alone."""
    job_id = slurm_lab.submit(
        *PRETRAIN, "config.yaml", "run_directory=run", "stand_in.num_steps=20",
        directory=project,
    )  # fmt: skip
    wait_for(lambda: len(read_steps(project)) >= 3)
    slurm_lab.call("scancel", "--signal=TERM", str(job_id))
    fields = slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1")
    assert len(read_steps(project)) == 20


@pytest.mark.long
def test_a_warning_during_the_imports_is_not_lost(slurm_lab: SlurmLab, project: Path) -> None:
    job_id = slurm_lab.submit(
        *PRETRAIN, "config.yaml", "run_directory=run", "stand_in.num_steps=45",
        "stand_in.import_seconds=2", directory=project,
    )  # fmt: skip
    output = project / f"slurm-pretrain-{job_id}.out"
    wait_for(lambda: output.exists() and "meeting at" in output.read_text())
    time.sleep(0.5)
    # What `--signal=B:USR1@120` does two minutes before the end: the batch shell alone is told.
    slurm_lab.call("scancel", "--batch", "--signal=USR1", str(job_id))
    fields = slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), output.read_text()
    steps = read_steps(project)
    assert len(steps) == 45
    assert steps[0].endswith("restart=0")
    assert steps[-1].endswith("restart=1")


def test_a_cancelled_job_stays_cancelled(slurm_lab: SlurmLab, project: Path) -> None:
    job_id = slurm_lab.submit(
        *PRETRAIN, "config.yaml", "run_directory=run", "stand_in.num_steps=200",
        directory=project,
    )  # fmt: skip
    wait_for(lambda: len(read_steps(project)) >= 3)
    slurm_lab.call("scancel", str(job_id))
    fields = slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    time.sleep(1.0)
    assert slurm_lab.job(job_id)["JobState"] == "CANCELLED"


def test_a_rank_that_always_fails_fails_the_job(slurm_lab: SlurmLab, project: Path) -> None:
    job_id = slurm_lab.submit(
        *PRETRAIN, "config.yaml", "run_directory=run", "stand_in.fail=true",
        directory=project,
    )  # fmt: skip
    fields = slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "70:0")
    output = read_output(project, job_id)
    assert output.count("ValueError: the stand-in was told to fail") == 3
    assert "not started again, for the last 3 attempts never came to a step" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no configuration given"),
        (["run_directory=run"], "no configuration given"),
        (["config.yaml", "missing.yaml"], "missing.yaml: there is no such file"),
        (["config.yaml", "lr", "3e-4"], "lr: there is no such file"),
        (["config.yaml", "cluster.launcher=mpirun"], "cluster.launcher: input should be 'srun'"),
    ],
)
def test_wrong_arguments_fail_before_any_rank_starts(
    slurm_lab: SlurmLab, project: Path, arguments: list[str], message: str
) -> None:
    job_id = slurm_lab.submit("slurm/pretrain.sh", *arguments, directory=project)
    fields = slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "2:0")
    assert message in read_output(project, job_id)


def test_submitting_from_elsewhere_is_explained(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    script = str(REPOSITORY / "slurm" / "pretrain.sh")
    job_id = slurm_lab.submit(script, "config.yaml", directory=tmp_path)
    slurm_lab.wait(job_id, timeout_seconds=WAIT_SECONDS)
    assert "run sbatch from the root of the repository" in read_output(tmp_path, job_id)


def test_down_leaves_no_process(tmp_path: Path) -> None:
    # As long a path as may be: the sockets of a job's steps lie in it.
    directory = tmp_path / ("s" * (slurm.MAX_SOCKET_PATH_BYTES - len(f"{tmp_path}/{STEP_SOCKET}")))
    record = slurm.up(directory, num_nodes=1, num_cpus=1)
    assert len(record.daemons) == 3
    try:
        lab = SlurmLab(directory, record.environment)
        # Jobs have processes of their own, which are no children of the daemons.
        marker = "86399.25"
        job_id = lab.submit(f"--wrap=sleep {marker}", directory=tmp_path)
        lab.wait(job_id, states={"RUNNING"}, timeout_seconds=WAIT_SECONDS)
        wait_for(lambda: bool(processes_with(marker)))
    finally:
        slurm.down(directory)
    assert not any(is_alive(daemon) for daemon in record.daemons)
    wait_for(lambda: not processes_with(marker) and not processes_with(str(directory)))
    assert Record.running(directory) is None
    slurm.down(directory)


def processes_with(text: str) -> list[str]:
    """Command lines that contain `text`."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


def test_a_missing_program_names_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(daemons, "SYSTEM_DIRECTORIES", ())
    with pytest.raises(LabError, match=r"apt-get install .* slurmctld slurmd slurm-client munge"):
        slurm.up(tmp_path / "slurm")


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    too_long = 1 + slurm.MAX_SOCKET_PATH_BYTES - len(f"{tmp_path}/{STEP_SOCKET}")
    with pytest.raises(LabError, match="too long for a socket"):
        slurm.up(tmp_path / ("x" * too_long), num_nodes=1)
