"""Ranks show what failed first, and where the others wait."""

import os

import pytest
import torch
import torch.distributed as dist

from tests import warm
from tools.ranks import RankPool, RanksFailed, run_ranks


def _fail_on_last_rank() -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("spilled milk")
    dist.barrier()


def _rank() -> int:
    return dist.get_rank()


def _wait_for_ever() -> None:
    if dist.get_rank() == 0:
        dist.barrier()


def _threads(plus: int) -> tuple[str, int]:
    return os.environ["OMP_NUM_THREADS"], torch.get_num_threads() + plus


def test_what_failed_is_shown_and_where_others_wait() -> None:
    with RankPool(2, context=warm.context()) as pool:
        assert pool.run(_rank) == [0, 1]
        with pytest.raises(
            RanksFailed, match=r"(?s)rank 1 failed.*spilled milk.*rank 0 was.*_fail"
        ):
            pool.run(_fail_on_last_rank)
        assert pool.run(_rank) == [0, 1], "fresh ranks after a failure"
        with pytest.raises(RanksFailed, match=r"(?s)ranks \[0\] did not answer.*_wait_for_ever"):
            pool.run(_wait_for_ever, timeout_seconds=2)


def test_ranks_that_start_from_nothing() -> None:
    before = dict(os.environ)
    assert run_ranks(_threads, 10, ranks=1, threads=2, timeout_seconds=60) == ("2", 12)
    assert dict(os.environ) == before
    with pytest.raises(RanksFailed, match=r"rank 0 failed:(?s:.*)ValueError: spilled milk"):
        run_ranks(_fail_on_last_rank, ranks=1, timeout_seconds=60)
