"""Runs that save on their nodes' own disks: killed, they go on from there with the same losses."""

import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import DEADLINE_SECONDS, Run, run, start, train, wait_for_step
from tests.train.storage.disks import small_disk
from tests.train.test_resume import DROPOUT, numbers
from tools.lab import s3
from tools.ledger import check_run
from train.__main__ import resolve
from train.checkpoint import directory as checkpoint_directory
from train.checkpoint import saver
from train.checkpoint.directory import Guard, Retention, complete, latest, step_of
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.watch.metrics import Metrics, read_metrics

TINY = Path(__file__).parents[1] / "tiny_run.yaml"
LAYOUT = ("zero.stage=1", "validation.every_steps=15", *DROPOUT)
STEPS = (
    "watch.norms_every_steps=3",
    "steps=30",
)


def on_nodes(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """Each rank is on a node of its own, which is its working directory."""
    train(arguments, output, {**environment, "SLURMD_NODENAME": f"node{environment['RANK']}"})


def near(place: Path, *, every: int = 3, copies: int = 1) -> str:
    """The section, with a directory for each node."""
    return (
        f"checkpoint.local={{directory: {place}/$SLURMD_NODENAME, every_steps: {every}, "
        f"copies: {copies}}}"
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    return run(corpus, tmp_path_factory.mktemp("run") / "whole", *STEPS, *LAYOUT, ranks=2)


def kill(attempt: Run, disks: Path, *, step: int, ranks: Sequence[int] = (0, 1)) -> None:
    """Let ranks die once their nodes have a step; the others lose their connections."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while min(near_by(disks, node) for node in ("node0", "node1")) < step:
        assert time.monotonic() < deadline
        assert all(rank.poll() is None for rank in attempt.ranks), attempt.wait().output[-3000:]
        time.sleep(0.01)
    for rank in ranks:
        attempt.ranks[rank].send_signal(signal.SIGKILL)
    for rank in attempt.ranks:
        assert rank.wait(DEADLINE_SECONDS) is not None, "it waits for the dead"


def near_by(disks: Path, *nodes: str) -> int:
    """The newest step that is committed on any node; 0 if there is none."""
    homes = [home for node in nodes or ("node0", "node1") for home in (disks / node).glob("run-*")]
    return max(
        (step_of(Place.of(home / name)) for home in homes for name in complete(home)), default=0
    )


def stored(directory: Path) -> int:
    """The newest step of the run's own checkpoints; 0 if there is none."""
    found = latest(Place.of(RunDirectory(directory).checkpoints))
    return 0 if found is None else step_of(found)


def last_start(directory: Path) -> tuple[int, str]:
    """The step after which the last start began, and what it says of that."""
    # In the order of their writing; what is read back is in the order of steps.
    lines = RunDirectory(directory).metrics.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    told = [each["text"] for each in records if "continuing from" in each.get("text", "")]
    return [each["step"] for each in records if each["kind"] == "run"][-1], told[-1]


def damage(place: Path, *nodes: str) -> None:
    """The last of the first rank's numbers, on some nodes."""
    for node in nodes:
        for file in (place / node).glob("*/step_*/chunks-00000.safetensors"):
            data = bytearray(file.read_bytes())
            data[-8:] = 8 * b"\xaa"  # the same when it is done again
            file.write_bytes(data)


def test_a_rank_dies_then_a_node(corpus: Path, undisturbed: Metrics, tmp_path: Path) -> None:
    """From the nodes' own disks, then from the copies; nothing of it stays."""
    directory, disks = tmp_path / "run", tmp_path / "disks"
    options = (*STEPS, "checkpoint.every_steps=1000", *LAYOUT, near(disks))
    attempt = start(corpus, directory, *options, ranks=2, main=on_nodes)
    kill(attempt, disks, step=6, ranks=[1])
    expected = near_by(disks)
    again = start(corpus, directory, *options, ranks=2, main=on_nodes)
    kill(again, disks, step=expected + 3)
    begun, told = last_start(directory)
    assert begun == expected >= 6
    assert "/disks/$SLURMD_NODENAME/run-" in told
    assert told.endswith(f"/step_{begun:08d} of the nodes' own disks")
    assert stored(directory) == 0
    shutil.rmtree(disks / "node0")
    expected = near_by(disks)
    resumed = run(corpus, directory, *options, ranks=2, main=on_nodes)
    assert last_start(directory)[0] == expected > begun
    assert numbers(resumed) == numbers(undisturbed)
    assert check_run(directory).faults == []
    assert [len(list((disks / node).iterdir())) for node in ("node0", "node1")] == [0, 0]


@pytest.mark.long
def test_damage_then_the_store(corpus: Path, undisturbed: Metrics, tmp_path: Path) -> None:
    """One copy damaged: the other one is read; both: the run's own checkpoint."""
    directory, disks = tmp_path / "run", tmp_path / "disks"
    options = (*STEPS, "checkpoint.every_steps=10", *LAYOUT, near(disks))
    own = f"continuing from {directory}/checkpoints/step_"
    attempt = start(corpus, directory, *options, ranks=2, main=on_nodes)
    kill(attempt, disks, step=15)
    expected = near_by(disks)
    damage(disks, "node0")
    again = start(corpus, directory, *options, ranks=2, main=on_nodes)
    kill(again, disks, step=expected + 3)
    assert last_start(directory)[0] == expected >= 15
    notes = [note.text for note in read_metrics(RunDirectory(directory).metrics).notes]
    assert any("is damaged" in text and "(on node0)" in text for text in notes)
    damage(disks, "node0", "node1")
    expected = stored(directory)
    resumed = run(corpus, directory, *options, ranks=2, main=on_nodes)
    assert last_start(directory) == (expected, f"{own}{expected:08d}")
    assert numbers(resumed) == numbers(undisturbed)
    assert check_run(directory).faults == []


def killed_before_naming(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """The rank that commits dies once its third checkpoint is whole and before it is named."""
    num_commits = itertools.count(1)

    def commit(staged: Place, *, retention: Retention, guard: Guard) -> None:
        if next(num_commits) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint_directory.commit(staged, retention=retention, guard=guard)

    saver.commit = commit
    on_nodes(arguments, output, environment)


def test_a_checkpoint_that_is_whole_and_was_not_named(
    corpus: Path, undisturbed: Metrics, tmp_path: Path
) -> None:
    """It is gone on from, and what the disks have since counts."""
    directory, disks = tmp_path / "run", tmp_path / "disks"
    options = (*STEPS, "checkpoint={every_steps: 5, keep: 9}", *LAYOUT, near(disks))
    killed = start(corpus, directory, *options, ranks=2, main=killed_before_naming)
    assert killed.ranks[0].wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert killed.ranks[1].wait(DEADLINE_SECONDS) is not None, "it waits for the dead"
    checkpoints = RunDirectory(directory).checkpoints
    assert complete(checkpoints)[-1] == "step_00000015"
    assert (checkpoints / "latest").read_text() == "step_00000010\nstep_00000015\n"
    expected = max(15, near_by(disks))
    resumed = run(corpus, directory, *options, ranks=2, main=on_nodes)
    assert last_start(directory)[0] == expected
    assert numbers(resumed) == numbers(undisturbed)
    assert (checkpoints / "latest").read_text() == "step_00000030\n"


def test_damage_where_nothing_is_stored(corpus: Path, undisturbed: Metrics, tmp_path: Path) -> None:
    """What was filled by half is built again: the run begins as if it had never begun."""
    directory, disks = tmp_path / "run", tmp_path / "disks"
    options = (*STEPS, "checkpoint.every_steps=1000", *LAYOUT, near(disks))
    attempt = start(corpus, directory, *options, ranks=2, main=on_nodes)
    kill(attempt, disks, step=3)
    damage(disks, "node0", "node1")
    again = run(corpus, directory, *options, ranks=2, main=on_nodes)
    assert any("step 3 whole" in note.text or "whole: chunks" in note.text for note in again.notes)
    assert not any("continuing from" in note.text for note in again.notes)
    assert numbers(again) == numbers(undisturbed)


@pytest.mark.long
def test_a_signal_fewer_nodes_and_a_run_that_went_back(
    corpus: Path, undisturbed: Metrics, tmp_path: Path
) -> None:
    directory, disks = tmp_path / "run", tmp_path / "disks"
    options = (*STEPS, "checkpoint={every_steps: 5, keep: 9}", *LAYOUT, near(disks))
    attempt = start(corpus, directory, *options, ranks=2, main=on_nodes)
    wait_for_step(attempt, directory, step=11)
    attempt.ranks[1].send_signal(signal.SIGTERM)
    assert attempt.wait().code == ExitStatus.SAVED
    stopped = read_metrics(RunDirectory(directory).metrics).train[-1].step
    assert stopped == stored(directory) == near_by(disks) < 30
    # One node is left, with all that the other had.
    shutil.rmtree(disks / "node1")
    again = start(corpus, directory, *options, main=on_nodes)
    wait_for_step(again, directory, step=stopped + 2)
    again.signal(signal.SIGKILL)
    again.wait()
    begun, told = last_start(directory)
    assert begun == stopped
    assert told.endswith("own disks"), "at the same step the disks are nearer"
    # Whoever goes back means it, whatever the disks hold.
    checkpoints = RunDirectory(directory).checkpoints
    (checkpoints / "latest").write_text("step_00000005\n")
    resumed = run(corpus, directory, *options, ranks=2, main=on_nodes)
    assert last_start(directory) == (5, f"continuing from {checkpoints}/step_00000005")
    assert numbers(resumed) == numbers(undisturbed)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which needs root")
@pytest.mark.long
def test_full_disks_are_an_alarm(corpus: Path, undisturbed: Metrics, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with small_disk(tmp_path / "disks", num_bytes=64 << 10) as disks:
        found = run(corpus, directory, *STEPS, *LAYOUT, near(disks), ranks=2, main=on_nodes)
        assert not list(disks.glob("*/run-*/step_*"))
    alarms = [note.text for note in found.notes if note.text.startswith("alarm: ")]
    assert len(alarms) == 1, "told once"
    assert "cannot be written (No space left on device)" in alarms[0]
    assert "training goes on, and it is tried again" in alarms[0]
    assert numbers(found) == numbers(undisturbed)
    assert complete(Place.of(RunDirectory(directory).checkpoints))[-1] == "step_00000030"


@pytest.mark.long
def test_a_store_that_is_gone_for_good_is_an_alarm(
    corpus: Path, undisturbed: Metrics, tmp_path: Path
) -> None:
    """Training goes on while the disks have its steps; what they hold completes it elsewhere."""
    directory, disks = tmp_path / "run", tmp_path / "disks"
    patience = ("storage.timeout_seconds=1", "storage.retry_budget_seconds=1")
    options = (*STEPS, "checkpoint.every_steps=4", *LAYOUT, near(disks, every=2), *patience)
    options += ("run_mirror=s3://lab/run",)
    server = s3.up(tmp_path / "s3", bucket="lab")
    try:
        attempt = start(
            corpus, directory, *options, ranks=2, main=on_nodes, environment=server.environment
        )
        wait_for_step(attempt, directory, step=9)
        s3.down(tmp_path / "s3")
        ended = attempt.wait()
        assert ended.code == ExitStatus.MISTAKE, ended.output[-3000:]
        assert "s3://lab/run/checkpoints cannot be written" in ended.output
        recorded = read_metrics(RunDirectory(directory).metrics)
        assert recorded.train[-1].step == 30, "to the last step, which belongs into the store"
        alarms = [note.text for note in recorded.notes if note.text.startswith("alarm: ")]
        assert any("s3://lab/run/checkpoints cannot be written" in text for text in alarms)
        expected = near_by(disks)
        server = s3.up(tmp_path / "s3", bucket="lab")  # an empty one
        resumed = run(
            corpus, directory, *options, ranks=2, main=on_nodes, environment=server.environment
        )
    finally:
        s3.down(tmp_path / "s3")
    assert last_start(directory)[0] == expected >= 20
    assert numbers(resumed) == numbers(undisturbed)
    assert RunDirectory(directory).summary.exists()


def test_a_directory_that_all_nodes_share_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its place, before anything starts; or by what two nodes see there."""
    places = (f"data.corpus={corpus}", f"run_directory={tmp_path}/run")
    monkeypatch.setenv("SCRATCH", str(tmp_path / "stored" / "here"))
    for local, said in (
        (f"{tmp_path}/run/disk", "lies in run_directory"),
        (f"{tmp_path}/run", "lies in run_directory"),
        ("$SCRATCH", "lies in checkpoint.directory"),
        ("$UNSET/here", "$UNSET/here: the variable $UNSET is not set"),
        ("s3://bucket/here", "is no directory of this host"),
    ):
        section = f"checkpoint.local={{directory: {local}, every_steps: 2}}"
        stored = f"checkpoint.directory={tmp_path}/stored"
        config = load(RunConfig, [str(TINY), *places, stored, section])
        with pytest.raises(ConfigError) as refused:
            resolve(config, ranks=1)
        assert str(refused.value).startswith("checkpoint.local.directory: ")
        assert said in str(refused.value)
    section = f"checkpoint.local={{directory: {tmp_path}/disk, every_steps: 2}}"
    ended = start(corpus, tmp_path / "run", section, ranks=2, main=on_nodes).wait()
    assert ended.code == ExitStatus.MISTAKE, ended.output
    assert "/disk is one and the same on node0 and node1: name a disk that" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "run").exists()
