"""Saving while training goes on: what is written, what is raised and when, what is kept."""

import re
import resource
import signal
import sys
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.zero import state as zero_state
from parallel.zero.config import Sharding
from parallel.zero.engine import ZeroEngine
from parallel.zero.pages import MOMENTS
from parallel.zero.state import StateSlice, local_slices
from tests.distributed.checkpoint.runs import save_steps, saver_of, state_of, tensors_of
from tests.distributed.toy import Toy, engine_of, train_step
from tests.train.runs import Rank
from tools.ranks import RankPool, run_module
from train.checkpoint import background
from train.checkpoint.directory import complete, latest
from train.checkpoint.restore import read_state, restore
from train.errors import CheckpointError
from train.storage.local import LocalPlace
from train.storage.place import Place


def _save_while_training(directory: Path, asynchronous: bool) -> tuple[bool, int | None]:
    """Holds the writer until training has gone on; whether `save` came back before."""
    engine = engine_of(Toy(), stage=3)
    train_step(engine, 0)
    release = threading.Event()
    if not asynchronous:
        release.set()
    write = background.write_chunks

    def slow_write(*arguments: Any) -> Any:
        assert release.wait(30)
        return write(*arguments)

    background.write_chunks = slow_write
    try:
        with saver_of(directory, asynchronous=asynchronous) as saver:
            expected = {
                f"{part.name}/{part.kind}": part.tensor.clone() for part in local_slices(engine)
            }
            saver.save(engine, state_of(1), step=1)
            if asynchronous:
                assert latest(directory) is None
            train_step(engine, 1)
            changed = [
                not torch.equal(expected[f"{part.name}/{part.kind}"], part.tensor)
                for part in local_slices(engine)
            ]
            assert any(changed)
            release.set()
            path = saver.finish()
            again = saver.finish()
            assert path == again == Place.of(directory / "step_00000001")
            room = saver._room
    finally:
        background.write_chunks = write
    saved = tensors_of(directory)
    same = all(
        torch.equal(saved[name][part.region.start : part.region.stop], expected[name])
        for part in local_slices(engine)
        for name in [f"{part.name}/{part.kind}"]
    )
    engine.close()
    return same, None if room is None else room.numel()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_written_is_what_was_at_the_save(
    rank_pools: dict[int, RankPool], tmp_path: Path, asynchronous: bool
) -> None:
    answers = rank_pools[2].run(_save_while_training, tmp_path, asynchronous)
    assert all(same for same, _ in answers)
    if asynchronous:
        num_elements = sum(parameter.numel() for parameter in Toy().parameters())
        assert sum(num_bytes or 0 for _, num_bytes in answers) == 3 * 4 * num_elements
    else:
        assert [num_bytes for _, num_bytes in answers] == [None, None], "no copy was made"


def _save_with_little_room(directory: Path, asynchronous: bool) -> str:
    engine = engine_of(Toy(), stage=2)
    saver = saver_of(directory, asynchronous=asynchronous)
    saver.save(engine, state_of(1), step=1)
    saver.finish()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    if asynchronous:
        assert saver.save(engine, state_of(2), step=2) is None
        # The error comes back from the next save, which is tried all the same; two end the run.
        lost = saver.save(engine, state_of(3), step=3)
        assert "cannot be written" in str(lost)
        with pytest.raises(CheckpointError) as caught:
            saver.save(engine, state_of(4), step=4)
    else:
        with pytest.raises(CheckpointError) as caught:
            saver.save(engine, state_of(2), step=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    dist.barrier()
    left = sorted(path.name for path in directory.iterdir())
    assert left == ["latest", "step_00000001"], left
    dist.barrier()
    saver.save(engine, state_of(3), step=3)
    assert saver.finish() == Place.of(directory / "step_00000003")
    engine.close()
    return str(caught.value)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_rank_that_cannot_write_fails_all(
    rank_pools: dict[int, RankPool], tmp_path: Path, asynchronous: bool
) -> None:
    for message in rank_pools[2].run(_save_with_little_room, tmp_path, asynchronous):
        assert "cannot be written (File too large); the checkpoints before it are whole" in message
        assert "rank 1 of 2" in message
    assert latest(tmp_path) == Place.of(tmp_path / "step_00000003")


def test_retention_and_steps_written_again(rank_pools: dict[int, RankPool], tmp_path: Path) -> None:
    (tmp_path / ".step_00000009.tmp-0a1b").mkdir()
    (tmp_path / ".latest.tmp-0a1b").touch()
    (tmp_path / "step_00000009").mkdir()
    (tmp_path / "step_00000009" / "chunks-00000.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    arguments = (tmp_path, [10, 20, 30, 20, 20], {"keep": 2})
    names = rank_pools[1].run(save_steps, *arguments)[0]
    assert names == [
        ["latest", "notes.txt", "step_00000010"],
        ["latest", "notes.txt", "step_00000010", "step_00000020"],
        ["latest", "notes.txt", "step_00000020", "step_00000030"],
        # Gone back to before step 20: step 30 belongs to a future that will not be.
        ["latest", "notes.txt", "step_00000020", "step_00000020.2"],
        ["latest", "notes.txt", "step_00000020.2", "step_00000020.3"],
    ]
    assert latest(tmp_path) == Place.of(tmp_path / "step_00000020.3")


def _save_where_another_has(directory: Path) -> tuple[str, list[list[str]]]:
    """A saver slept while another one of the same start saved twice; what it says, what is left."""
    engine = engine_of(Toy(), stage=0)
    with saver_of(directory, keep=1) as first:
        first.save(engine, state_of(1), step=1)
        first.finish()
        with saver_of(directory, keep=1) as other:
            for step in (2, 3):
                other.save(engine, state_of(step), step=step)
        (directory / "step_00000004").mkdir()  # the other is about to write it
        before = sorted(path.name for path in directory.rglob("*"))
        first.save(engine, state_of(2), step=2)
        with pytest.raises(CheckpointError) as refused:
            first.finish()
    engine.close()
    return str(refused.value), [before, sorted(path.name for path in directory.rglob("*"))]


def test_what_another_has_saved_meanwhile_stays(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    told, (before, after) = rank_pools[1].run(_save_where_another_has, tmp_path)[0]
    assert re.search(r"is 'step_00000003', which this run has not written: .*start it again", told)
    assert before == after


def _save_while_another_takes_over(directory: Path) -> tuple[str, list[str]]:
    """What has to be done before a commit takes so long that another run saves meanwhile."""
    engine = engine_of(Toy(), stage=0)
    other = saver_of(directory, keep=1)

    def take_long() -> None:
        other.save(engine, state_of(1), step=1)
        other.finish()

    first = saver_of(directory, keep=1, before_commit=take_long)
    first.save(engine, state_of(2), step=2)
    with pytest.raises(CheckpointError) as refused:
        first.finish()
    engine.close()
    return str(refused.value), complete(directory)


def test_who_is_taken_over_before_a_commit_makes_none(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    told, left = rank_pools[1].run(_save_while_another_takes_over, tmp_path)[0]
    assert "is 'step_00000001', which this run has not written" in told
    assert left == ["step_00000001"]


def test_milestones_stay(rank_pools: dict[int, RankPool], tmp_path: Path) -> None:
    arguments = (tmp_path, [5, 10, 15, 20, 25], {"keep": 1, "keep_every_steps": 10})
    names = rank_pools[1].run(save_steps, *arguments)[0]
    assert names[-1] == ["latest", "step_00000010", "step_00000020", "step_00000025"]


def _fail_while_saving(rank: int, directory: Path, which: str) -> None:
    """One rank of two, all or one of which fail while the first checkpoint is being written."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )
    engine = engine_of(Toy(), stage=1)
    write = background.write_chunks

    def slow(*arguments: Any) -> Any:
        time.sleep(1)
        return write(*arguments)

    background.write_chunks = slow
    with saver_of(directory / "checkpoints") as saver:
        saver.save(engine, state_of(1), step=1)
        if rank == 0 or which == "all":
            raise RuntimeError("training failed")
        dist.barrier()  # as a rank that goes on would


@pytest.mark.parametrize("which", ["all", "one"])
def test_failing_training_ends_and_keeps_what_was_being_written(tmp_path: Path, which: str) -> None:
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ranks = [
        Rank(
            [str(rank), str(tmp_path), which],
            tmp_path / f"output-{rank}",
            {
                **{"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), **world},
            },
            partial(run_module, __name__),
        )
        for rank in range(2)
    ]
    codes = [rank.wait(100) for rank in ranks]
    assert "RuntimeError: training failed" in ranks[0].output()
    assert all(codes), [rank.output() for rank in ranks]
    # The threads of all ranks lived on for long enough to commit.
    path = latest(tmp_path / "checkpoints")
    assert path is not None
    assert read_state(path).step == 1


def _move(engine: ZeroEngine) -> None:
    """Training state lies elsewhere from now on, with the same values."""
    for master in zero_state._master_tensors(engine):
        state = engine.base_optimizer.state[master]
        state |= {kind: state[kind].clone() for kind in MOMENTS}
        if engine.sharding is not Sharding.PER_PARAMETER:  # there gradients' places go by it
            master.data = master.data.clone()
    for _, parameter in engine.parameters:
        if not parameter.requires_grad:
            fixed: Any = getattr(parameter, "ds_tensor", parameter)
            fixed.data = fixed.data.clone()


def _save_after_moving(directory: Path, stage: int) -> tuple[list[int], list[bool]]:
    """How often views were made by each of four saves, and whether each has what it should."""
    engine = engine_of(Toy(frozen=True), stage=stage)
    made, counted, right = [0], [], []
    usual = background.local_slices

    def counting(engine: ZeroEngine) -> list[StateSlice]:
        made[0] += 1
        return usual(engine)

    background.local_slices = counting
    try:
        with saver_of(directory) as saver:
            for step in range(1, 5):
                train_step(engine, step)
                if step == 3:
                    _move(engine)
                    train_step(engine, step)
                expected = {
                    (part.name, part.kind, part.region.start): part.tensor.clone()
                    for part in usual(engine)
                }
                saver.save(engine, state_of(step), step=step)
                train_step(engine, step)  # nothing of it is in what is being written
                counted.append(made[0])
                other = engine_of(Toy(frozen=True), stage=stage)
                restore(saver.finish(), other)
                right.append(
                    all(
                        torch.equal(part.tensor, expected[part.name, part.kind, part.region.start])
                        for part in usual(other)
                    )
                )
                other.close()
    finally:
        background.local_slices = usual
    engine.close()
    return counted, right


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_views_are_made_again_only_where_storage_has_moved(
    rank_pools: dict[int, RankPool], tmp_path: Path, stage: int
) -> None:
    for counted, right in rank_pools[2].run(_save_after_moving, tmp_path, stage):
        assert counted == [1, 1, 2, 2]
        assert right == [True] * 4


def _storage_without_rename(directory: Path) -> list[str]:
    """Fails between the index and the pointer; the next save must clear up and go on."""
    engine = engine_of(Toy(), stage=1)
    write = LocalPlace.write_once

    def failing(self: LocalPlace, data: bytes) -> None:
        if self.name == "index.json":
            raise OSError(5, "Input/output error", self.path)
        write(self, data)

    saver = saver_of(directory)
    saver.save(engine, state_of(1), step=1)
    saver.finish()
    LocalPlace.write_once = failing
    try:
        saver.save(engine, state_of(2), step=2)
        with pytest.raises(CheckpointError, match="Input/output error"):
            saver.finish()
    finally:
        LocalPlace.write_once = write
    dist.barrier()
    names = sorted(path.name for path in directory.iterdir())
    engine.close()
    return names


def test_a_commit_that_fails_leaves_the_one_before(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    for names in rank_pools[2].run(_storage_without_rename, tmp_path):
        assert names == ["latest", "step_00000001"]


if __name__ == "__main__":
    _fail_while_saving(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
