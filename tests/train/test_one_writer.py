"""Of several runs that name one place, one writes there: on a real store, as on a disk."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.lab_fixtures import place_at
from tests.train.runs import start, wait_for_step
from tools.checkpoint import main
from train.checkpoint.directory import complete, latest
from train.exit_status import ExitStatus
from train.storage.place import Place

ENDLESS = ("steps=100000", "validation.every_steps=100000", "checkpoint.every_steps=3")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(params=[pytest.param("here", marks=pytest.mark.long), "in a store"])
def saved(request: pytest.FixtureRequest) -> Place:
    if request.param == "here":
        return place_at("here", "saved", request)
    return place_at("in a store", "mirror", request) / "checkpoints"


def saves_to(saved: Place) -> str:
    """The override by which a run's checkpoints lie there."""
    key = "run_mirror" if saved.is_remote else "checkpoint.directory"
    return f"{key}={str(saved).removesuffix('/checkpoints')}"


def change_lease(directory: Place, number: int, **about: object) -> None:
    """As if a process of another host had written it."""
    file = directory / f".lock.{number}"
    there = {"host": "node9", "kernel": "another", "renewed_every_seconds": 0.2}
    file.write(json.dumps(json.loads(file.read()) | there | about).encode())


def test_two_runs_that_save_to_one_place(corpus: Path, saved: Place, tmp_path: Path) -> None:
    """The second is refused, and the first loses nothing; taken over, it stops."""
    steps = (*ENDLESS, saves_to(saved))
    first = start(corpus, tmp_path / "first", *steps, "checkpoint.keep=100")
    wait_for_step(first, tmp_path / "first", step=7)
    for other in ("seed=2", "seed=1"):
        second = start(corpus, tmp_path / "second", *steps, "checkpoint.keep=1", other).wait()
        assert second.code == 2
        pid = first.ranks[0].pid
        assert f"{saved} is in use by another process, pid {pid} of" in second.output
        assert "Traceback" not in second.output
        assert not (tmp_path / "second").exists()
    assert main(["prune", str(saved), "--keep", "1"]) == 2
    assert complete(saved)[:2] == ["step_00000003", "step_00000006"]
    (saved / ".lock.2").write((saved / ".lock.1").read().replace(b'"id":"', b'"id":"other'))
    ended = first.wait()
    assert ended.code == 2
    assert f"{saved} was taken over by another process, pid" in ended.output
    assert "Traceback" not in ended.output
    assert ".lock.2" in saved.names()


def test_runs_of_hosts_that_died(corpus: Path, saved: Place, tmp_path: Path) -> None:
    """On what another host began, a run waits and goes on; requeued, it does not wait.

    The first host was asleep: long after, it touches nothing.
    """
    steps = (*ENDLESS, saves_to(saved))
    job = {"SLURM_JOB_ID": "77"}
    first = start(corpus, tmp_path / "a", *steps, environment=job)
    wait_for_step(first, tmp_path / "a", step=4)
    while latest(saved) is None:
        time.sleep(0.05)
    first.signal(signal.SIGSTOP)
    change_lease(saved, 1)
    second = start(corpus, tmp_path / "b", *steps, environment=job)
    wait_for_step(second, tmp_path / "b", step=30)  # others come from the mirror
    told = second.ranks[0].output()
    assert f"{saved} was held by pid" in told
    assert "on node9 since" in told
    assert "Slurm job 77" in told
    assert "waiting 1 s to see whether that lives" in told
    assert f"continuing from {saved}/step_" in told
    saved_by_second = latest(saved)
    assert saved_by_second is not None
    chunks = [name for name in saved_by_second.names() if name.startswith("chunks-")]
    assert chunks == ["chunks-00000-2.safetensors"], "none that the first may be writing"
    second.signal(signal.SIGKILL)
    second.wait()
    change_lease(saved, 2, renewed_every_seconds=60)
    change_lease(Place.of(tmp_path / "b"), 1, renewed_every_seconds=60)
    requeued = start(corpus, tmp_path / "b", *steps, environment=job | {"SLURM_RESTART_COUNT": "1"})
    wait_for_step(requeued, tmp_path / "b", step=50)
    assert "to see whether that lives" not in requeued.ranks[0].output()
    requeued.signal(signal.SIGUSR1)
    assert requeued.wait().code == ExitStatus.SAVED
    for directory in (saved, Place.of(tmp_path / "b")):
        assert not [name for name in directory.names() if name.startswith(".lock")]
    left = {name: latest(saved) for name in saved.names()}
    first.signal(signal.SIGCONT)
    ended = first.wait()
    assert ended.code == 2
    assert f"the newest checkpoint in {saved} is 'step_" in ended.output
    assert "another one has been here meanwhile, so this one stops, and removes" in ended.output
    assert {name: latest(saved) for name in saved.names()} == left
