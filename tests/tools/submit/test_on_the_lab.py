"""Jobs on the real Slurm of the lab, submitted as users do it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.corpora import VOCABULARY, write_corpus
from tests.train.fault_lab import losses_of
from tools.chaos.project import make_project
from tools.keep.attempt import ATTEMPTS_NAME, read_attempts
from tools.lab.jobs import SlurmLab
from tools.submit import calling
from tools.submit.__main__ import main, submitted
from train.errors import UserError
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

REPOSITORY = Path(__file__).parents[3]
LINE = ("configs/experiment/tiny.yaml", "configs/cluster/lab.yaml")
RUN = (*LINE, f"model.decoder.vocabulary={VOCABULARY}")
SAYS_WHAT_IT_IS = """\
import json, os, pathlib, sys
given = dict(each.split("=", 1) for each in sys.argv[1:] if "=" in each)
run = pathlib.Path(given["run_directory"])
run.mkdir(parents=True)
(run / "ran.json").write_text(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The repository, at a path with a space, with a trainer that says what it was given."""
    project = tmp_path / "the code"
    make_project(project, main=SAYS_WHAT_IT_IS)
    return project


@pytest.mark.long
def test_an_array_submitted_from_elsewhere(
    slurm_lab: SlurmLab,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    elsewhere = tmp_path / "else where"
    (elsewhere / "train").mkdir(parents=True)
    (elsewhere / "train" / "__init__.py").write_text("raise SystemExit('of somebody else')")
    (elsewhere / "my run.yaml").write_text(
        f"include: [{REPOSITORY}/{LINE[0]}]\nrun_directory: my runs/x\nlayout: {{tensor: 1}}\n"
        "cluster:\n"
        "  environment: {SAID: it's, N: 3, OMP_NUM_THREADS: 5, module: m, python: p}\n"
        "  setup: [export OF_SETUP=node;, 'module=x python=y # ours', cd /, set -eu]\n"
        "  scratch: $SCRATCH/$OF_SETUP-$SLURM_JOB_NUM_NODES\n"
        "  sbatch: [--hold]\n"
    )
    for name, value in slurm_lab.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setenv("SECRET_KEY", "handed on, and never shown")
    monkeypatch.chdir(elsewhere)
    odd = "--comment=of somebody\n else \x0b\u2028"
    other = slurm_lab.submit("--hold", odd, "--wrap=true", directory=elsewhere)
    assert other in [each.number for each in calling.jobs()]
    slurm_lab.call("scancel", str(other))
    told: list[str] = []
    submitted_jobs: list[int] = []
    for seeds in (["1", "2"], ["3"]):
        done = subprocess.run(
            [project / ".venv/bin/python", "-m", "tools.submit", "my run.yaml", "--seeds", *seeds],
            env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(project)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "".join(f"my runs/x-seed_{seed}\n" for seed in seeds)
        submitted_jobs.append(int(done.stderr.removeprefix("job ").partition(":")[0]))
        told += [done.stdout, done.stderr]
    job, alone = submitted_jobs

    again = [f"{REPOSITORY}/{each}" for each in LINE]
    assert main([*again, "run_directory=my runs/x-seed_2"]) == ExitStatus.MISTAKE
    assert capsys.readouterr().err == (
        f"run_directory: job {job} for my runs/x-seed_2 is pending already: wait for it, end it "
        f"with scancel {job}, or name another directory\n"
    )
    # One that has looked at the queue at the same time, and saw nothing.
    command, asked = ["sbatch", "--parsable", "--hold"], [f"{REPOSITORY}/slurm/pretrain.sh"]
    with pytest.raises(UserError, match=rf"job {job} for .* is pending already"):
        submitted(command, asked, [{}, {}], runs=[Path("my runs/x-seed_1").absolute()])
    slurm_lab.call("scontrol", "release", str(job), str(alone))
    deadline = time.monotonic() + 60
    while queue := [each for each in calling.jobs() if each.array in (job, alone)]:
        assert time.monotonic() < deadline, queue
        time.sleep(0.2)
    for array, task, seed in ((job, 0, 1), (job, 1, 2), (alone, 0, 3)):
        ran = elsewhere / "my runs" / f"x-seed_{seed}" / "ran.json"
        output = (elsewhere / f"slurm-tiny-{array}_{task}.out").read_text()
        assert ran.exists(), output
        assert ", 5 threads each" in output
        arguments, environment, directory = json.loads(ran.read_text())
        assert arguments[:2] == ["my run.yaml", f"seed={seed}"]
        assert directory == str(elsewhere)
        for name, value in (
            ("SAID", "it's"), ("N", "3"), ("TMPDIR", f"{tmp_path}/node-1"), ("module", "m"),
            ("python", "p"), ("OMP_NUM_THREADS", "5"), ("SECRET_KEY", "handed on, and never shown"),
        ):  # fmt: skip
            assert environment[name] == value
        assert "never shown" not in "".join([output, *told])
    assert (tmp_path / "node-1").is_dir()


@pytest.fixture
def checkout(tmp_path: Path, slurm_lab: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As a user's: the repository's code, a corpus for tiny.yaml, and no earlier output."""
    make_project(tmp_path, main=None)
    write_corpus(tmp_path / "data" / "tiny", sequence_tokens=128)
    for name, value in {**slurm_lab.environment, "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wait_for_steps(run: Path, steps: int) -> None:
    deadline = time.monotonic() + 240
    metrics = RunDirectory(run).metrics
    while not (metrics.exists() and len(read_metrics(metrics).train) >= steps):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
def test_each_launcher_ends_completed_with_the_same_losses(
    slurm_lab: SlurmLab, checkout: Path
) -> None:
    found: list[list[tuple[int, float]]] = []
    for launcher in ("srun", "torchrun", "deepspeed"):
        run = checkout / launcher
        own = () if launcher == "srun" else (f"cluster.launcher={launcher}",)
        job = slurm_lab.submit(
            "slurm/pretrain.sh", *RUN, *own, f"run_directory={run}", directory=checkout
        )
        ended = slurm_lab.wait(job, timeout_seconds=300)
        assert (ended["JobState"], ended["NumNodes"]) == ("COMPLETED", "2")
        [attempt] = read_attempts(run / ATTEMPTS_NAME)
        assert (attempt.num_ranks, attempt.verdict.kind) == (4, "complete")
        found.append(losses_of(run))
    assert len(found[0]) == 20
    assert found[0] == found[1] == found[2]


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_an_agent_s_dead_rank_is_started_again_and_a_warning_saves(
    slurm_lab: SlurmLab, checkout: Path, launcher: str
) -> None:
    run = checkout / "run"
    job = slurm_lab.submit(
        *("slurm/pretrain.sh", *RUN, f"cluster.launcher={launcher}", f"run_directory={run}"),
        *("steps=400", "checkpoint.every_steps=2", "validation.every_steps=400"),
        directory=checkout,
    )
    wait_for_steps(run, 4)
    ranks = [
        process.pid
        for process in psutil.process_iter()
        if process.cmdline()[1:3] == ["-m", "train"] and f"run_directory={run}" in process.cmdline()
    ]
    assert len(ranks) == 4
    os.kill(ranks[-1], signal.SIGKILL)
    deadline = time.monotonic() + 240
    while not (attempts := read_attempts(run / ATTEMPTS_NAME)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert attempts[0].verdict.kind == "dead"
    wait_for_steps(run, (attempts[0].last_step or 0) + 3)
    slurm_lab.call("scancel", "--batch", "--signal=USR1", str(job))
    while len(attempts := read_attempts(run / ATTEMPTS_NAME)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    slurm_lab.call("scancel", str(job))
    assert attempts[1].verdict.kind == "stopped by a signal", attempts[1]
    assert attempts[1].status == ExitStatus.SAVED
    slurm_lab.wait(job, timeout_seconds=60)


@pytest.mark.long
def test_a_chain_goes_on_until_the_run_is_complete(
    slurm_lab: SlurmLab, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*RUN, "run_directory=run", "steps=60", "cluster.nodes=1"]
    assert main([*arguments, "--chain", "3"]) == ExitStatus.COMPLETE
    jobs = [int(line.split()[1].rstrip(":")) for line in capsys.readouterr().err.splitlines()]
    wait_for_steps(checkout / "run", 2)
    slurm_lab.call("scancel", "--batch", "--signal=USR1", str(jobs[0]))
    ended = [slurm_lab.wait(job, timeout_seconds=300) for job in jobs]
    assert [(each["JobState"], each["ExitCode"]) for each in ended] == [
        ("FAILED", "75:0"), ("COMPLETED", "0:0"), ("COMPLETED", "0:0")
    ]  # fmt: skip
    assert [each["Restarts"] for each in ended] == ["0", "0", "0"]
    assert [step for step, _ in losses_of(checkout / "run")] == list(range(1, 61))
    assert len(read_metrics(RunDirectory(checkout / "run").metrics).runs) == 2
    last = (checkout / f"slurm-tiny-{jobs[2]}.out").read_text()
    assert last == "job 3 of the chain does nothing: run is complete (60 of 60 steps)\n"
    assert main([*arguments, "--chain", "2"]) == ExitStatus.MISTAKE
    assert "run_directory: run is complete (60 of 60 steps)" in capsys.readouterr().err
