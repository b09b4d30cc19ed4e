"""Who may write in a run's directory and where it saves, and what one who was away finds there."""

from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, run, start
from train.checkpoint.directory import announce, latest, stage
from train.checkpoint.format import seal
from train.claim import claim, leases_of
from train.config import RunConfig
from train.config_files import load
from train.errors import InUseError
from train.storage.lease import Lease, take_those_there


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def config(corpus: Path, directory: Path, *overrides: str) -> RunConfig:
    given = [f"data.corpus={corpus}", f"run_directory={directory}", *overrides]
    return load(RunConfig, [str(TINY_RUN), *given])


def test_directory_in_use(corpus: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    mine = leases(corpus, directory)
    take_those_there(mine)
    assert not directory.exists(), "only a run that is about to begin makes its directory"
    claim_new(config(corpus, directory), mine)
    with pytest.raises(InUseError, match=f"{directory} is in use .* another run_directory"):
        take_those_there(leases(corpus, directory))
    elsewhere = leases(corpus, tmp_path / "other", f"checkpoint.directory={directory}/checkpoints")
    with pytest.raises(InUseError, match=r"checkpoints is in use .* another checkpoint.directory"):
        elsewhere[1].take()
    # Nothing of a run that goes on is looked at: its checkpoints come and go.
    (directory / "checkpoints" / "latest").write_text("step_00000001\n")
    ended = start(corpus, directory).wait()
    assert ended.code == 2
    assert "is in use by another process" in ended.output
    (directory / "checkpoints" / "latest").unlink()
    for lease in mine:
        lease.release()
    claim_new(config(corpus, directory), again := leases(corpus, directory))
    for lease in again:
        lease.release()


def test_checkpoints_in_the_run_directory_itself(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for name in ("run", "link"):
        both = leases(corpus, tmp_path / "run", f"checkpoint.directory={tmp_path / name}")
        claim_new(config(corpus, tmp_path / "run"), both)
        assert [lease.directory.name for lease in both] == ["run"]
        assert (tmp_path / "run" / "config.yaml").exists()
        both[0].release()


def test_another_run_while_one_prepares(corpus: Path, tmp_path: Path) -> None:
    """In a directory that was not there when the one looked for what it is to go on from."""
    directory = tmp_path / "run"
    begins = leases(corpus, directory)
    take_those_there(begins)
    run(corpus, directory, "steps=3", "checkpoint.every_steps=1")
    kept = {path.name for path in directory.iterdir()}
    with pytest.raises(InUseError, match=rf"saved to {directory}/checkpoints while this one prep"):
        claim_new(config(corpus, directory, "steps=3", "checkpoint.every_steps=1"), begins)
    for lease in begins:
        lease.release()
    assert {path.name for path in directory.iterdir()} == kept
    assert "summary.json" in kept


def test_one_that_slept_while_it_completed_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """It wakes when another has claimed the directory and removed what looked left."""
    directory = tmp_path / "run"
    options = ("steps=2", "checkpoint.every_steps=2")
    run(corpus, directory, *options)
    changed = config(corpus, directory, *options)
    checkpoints = changed.checkpoints_of(changed.directory)
    newest = latest(checkpoints)
    asleep = stage(checkpoints, 4)
    (asleep / "chunks-00000.safetensors").write(b"numbers")
    announce(asleep)
    goes_on = leases(corpus, directory, *options)
    take_those_there(goes_on)
    claim(changed, goes_on, checkpoints, newest)
    stage(checkpoints, 3)
    assert not asleep.exists()
    seal(asleep, [], b"{}")
    assert latest(checkpoints) == newest
    for lease in goes_on:
        lease.release()


def claim_new(config: RunConfig, leases: list[Lease]) -> None:
    claim(config, leases, config.checkpoints_of(config.directory), None)


def leases(corpus: Path, directory: Path, *overrides: str) -> list[Lease]:
    changed = config(corpus, directory, *overrides)
    return leases_of(changed, changed.checkpoints_of(changed.directory))
