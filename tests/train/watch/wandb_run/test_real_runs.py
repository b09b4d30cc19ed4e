"""Real runs beside a live server: killed, stopped and requeued, they are one W&B run."""

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.corpora import VOCABULARY, write_corpus
from tests.tools.submit.test_on_the_lab import LINE, checkout, wait_for_steps
from tests.train.runs import Run, start, wait_for_step
from tests.train.watch.wandb_run.server import KEY, WandbServer
from tools.lab.jobs import SlurmLab
from train.exit_status import ExitStatus
from train.watch.metrics import read_metrics

__all__ = ["checkout"]  # a fixture

STEPS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def begin(corpus: Path, directory: Path, wandb_lab: WandbServer) -> Run:
    return start(
        corpus,
        directory,
        f"steps={STEPS}",
        "watch.wandb=online",
        "checkpoint.every_steps=4",
        environment=wandb_lab.variables,
    )


def tree(run: Run) -> list[psutil.Process]:
    """All processes of a run, as Slurm finds them."""
    found: list[psutil.Process] = []
    for rank in run.ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(rank.pid)
            found += [process, *process.children(recursive=True)]
    return found


def wait_for_service(run: Run) -> None:
    deadline = time.monotonic() + 60
    while not any(process.name() == "wandb-core" for process in tree(run)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_is_one(directory: Path, wandb_lab: WandbServer) -> None:
    """The server has one run of it, with each step once, as it was recorded last."""
    metrics = read_metrics(directory / "metrics.jsonl")
    [run_id] = {record.wandb_run_id for record in metrics.runs}
    assert run_id is not None
    rows = wandb_lab.rows(run_id)
    losses = [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(record.step, record.loss) for record in metrics.train]
    assert len({row["_step"] for row in rows}) == len(rows)
    # What let it write is written nowhere.
    for path in directory.rglob("*"):
        assert not (path.is_file() and KEY.encode() in path.read_bytes()), path


@pytest.mark.long
def test_a_killed_run_is_one(tmp_path: Path, corpus: Path, wandb_lab: WandbServer) -> None:
    """The first time before it has saved anything, the second time later."""
    for step in (2, 10):
        run = begin(corpus, tmp_path, wandb_lab)
        wait_for_service(run)
        wait_for_step(run, tmp_path, step=step)
        processes = tree(run)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)
        for rank in run.ranks:
            rank.wait()
    ended = begin(corpus, tmp_path, wandb_lab).wait()
    assert ended.code == ExitStatus.COMPLETE, ended.output[-3000:]
    assert KEY not in ended.output
    assert_is_one(tmp_path, wandb_lab)


def test_sigterm_to_all_processes_loses_nothing(
    tmp_path: Path, corpus: Path, wandb_lab: WandbServer
) -> None:
    run = begin(corpus, tmp_path, wandb_lab)
    wait_for_service(run)
    wait_for_step(run, tmp_path, step=6)
    for process in tree(run):
        process.send_signal(signal.SIGTERM)
    ended = run.wait()
    assert ended.code == ExitStatus.SAVED, ended.output[-3000:]
    # Already now, before another start could fill up what was lost.
    assert_is_one(tmp_path, wandb_lab)
    ended = begin(corpus, tmp_path, wandb_lab).wait()
    assert ended.code == ExitStatus.COMPLETE, ended.output[-3000:]
    assert_is_one(tmp_path, wandb_lab)


@pytest.mark.long
def test_a_requeued_job_is_one(
    slurm_lab: SlurmLab, checkout: Path, wandb_lab: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm itself sends SIGTERM to all that descends from the job's steps."""
    monkeypatch.delenv("WANDB_MODE")
    for name, value in wandb_lab.variables.items():
        monkeypatch.setenv(name, value)
    run = checkout / "run"
    job = slurm_lab.submit(
        *("slurm/pretrain.sh", *LINE, f"run_directory={run}", "watch.wandb=online"),
        f"model.decoder.vocabulary={VOCABULARY}",
        *("steps=120", "checkpoint.every_steps=10", "validation.every_steps=400"),
        directory=checkout,
    )
    wait_for_steps(run, 20)
    slurm_lab.call("scontrol", "requeue", str(job))
    ended = slurm_lab.wait(job, timeout_seconds=400, states={"COMPLETED", "FAILED", "CANCELLED"})
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    notes = [note.text for note in read_metrics(run / "metrics.jsonl").notes]
    assert any("stopped after step" in note for note in notes), os.linesep.join(notes)
    assert_is_one(run, wandb_lab)
