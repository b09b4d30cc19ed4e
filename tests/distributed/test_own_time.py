"""What a rank waits for another one is told apart from what it computes."""

import time
from typing import Any

import torch
import torch.distributed as dist

from tools.ranks import RankPool
from train.watch.own_time import counted_waits

LATE_SECONDS = 0.5


def reduce_late(late_rank: int) -> dict[str, float]:
    """Sums on two ranks, one of which comes late, in each of the ways in which one may wait."""
    values = torch.ones(4)
    other = 1 - dist.get_rank()

    def asynchronous() -> None:
        work = dist.all_reduce(values, async_op=True)
        assert work is not None
        work.wait()

    def pairwise() -> None:
        send, receive = dist.P2POp(dist.isend, values, other), dist.P2POp(dist.irecv, values, other)
        for work in dist.batch_isend_irecv([send, receive]):
            work.wait()

    ways: dict[str, Any] = {
        "all_reduce": lambda: dist.all_reduce(values),
        "asynchronous": asynchronous,
        "barrier": dist.barrier,
        "broadcast": lambda: dist.broadcast(values, late_rank),
        "all_gather": lambda: dist.all_gather([torch.empty(4), torch.empty(4)], values),
        "pairwise": pairwise,
    }
    found: dict[str, float] = {}
    for name, way in ways.items():
        dist.barrier()
        with counted_waits() as waits:
            if dist.get_rank() == late_rank:
                time.sleep(LATE_SECONDS)
            way()
        found[name] = waits.seconds
    wait = dist.Work.wait
    with counted_waits():
        assert dist.Work.wait is not wait
    assert dist.Work.wait is wait
    return found


def test_who_comes_late_has_not_waited(rank_pools: dict[int, RankPool]) -> None:
    late, waiting = rank_pools[2].run(reduce_late, 0)
    for name, seconds in waiting.items():
        assert seconds > 0.6 * LATE_SECONDS, name
        assert late[name] < 0.4 * LATE_SECONDS, name
