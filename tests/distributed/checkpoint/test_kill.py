"""SIGKILL of all ranks, at any instant around a save, leaves a whole latest checkpoint."""

import contextlib
import importlib
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed.checkpoint.runs import saver_of, state_of
from tests.distributed.toy import Toy, engine_of, train_step
from tests.train.runs import Rank
from tools.checkpoint import faults
from tools.ranks import run_module
from train.checkpoint.directory import latest
from train.checkpoint.restore import load_module, restore

NUM_RANKS = 2
WINDOW_SECONDS = 0.2
"""A dozen saves: an instant within them may lie anywhere in one."""


def _train_and_save_for_ever(directory: Path, attempt: int, rank: int, announce: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(NUM_RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )
    store = directory.with_name(f"store-{attempt}")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=NUM_RANKS)
    engine = engine_of(Toy(), stage=3 if attempt % 2 else 1)
    step = 0
    if (found := latest(directory)) is not None:
        step = restore(found, engine).step
    first = step + 1
    with saver_of(directory, keep=1) as saver:
        while True:
            train_step(engine, step)
            step += 1
            saver.save(engine, state_of(step), step=step)
            # That returned, so the one before is committed; this one is being written.
            if rank == 0 and step > first:
                os.write(announce, f"{step - 1}\n".encode())


def kill_again_and_again(directory: Path, num_kills: int) -> None:
    """Kills two ranks that save without pause, at random instants; the last commit must load."""
    importlib.import_module("deepspeed")  # once, before the forks
    instants = random.Random(7)
    for attempt in range(num_kills):
        receive, announce = os.pipe()
        children: list[int] = []
        for rank in range(NUM_RANKS):
            child = os.fork()
            if child == 0:
                os.close(receive)
                with contextlib.suppress(BaseException):
                    _train_and_save_for_ever(directory, attempt, rank, announce)
                os._exit(1)
            children.append(child)
        os.close(announce)
        with os.fdopen(receive) as announced:
            last = int(announced.readline())
            time.sleep(instants.uniform(0, WINDOW_SECONDS))
            for child in children:
                os.kill(child, signal.SIGKILL)
            for child in children:
                os.waitpid(child, 0)
            for line in announced:
                last = int(line)
        found = latest(directory)
        assert found is not None
        assert not list(faults(found))
        state = load_module(found, Toy())
        # What was announced is there; what was being written, or not announced yet, may be.
        assert last <= state.step <= last + 2, (attempt, state.step, last)
        sys.stdout.write(f"attempt {attempt}: step {last}, {sorted(os.listdir(directory))}\n")


@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.long)])
def test_sigkill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path, num_kills: int) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    ended = Rank(
        [str(directory), str(num_kills)],
        tmp_path / "output",
        {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        partial(run_module, __name__),
    )
    assert ended.wait(500) == 0, ended.output()


if __name__ == "__main__":
    kill_again_and_again(Path(sys.argv[1]), int(sys.argv[2]))
