"""Ranks shared by all tests: they import DeepSpeed once a session."""

from collections.abc import Iterator

import pytest

from tests import warm
from tools.ranks import RankPool

MAX_RANKS = 11
"""Alive at a time; each takes about half a gigabyte."""


class RankPools(dict[int, RankPool]):
    """One pool for each number of ranks, started when first used and closed to make room."""

    def __missing__(self, num_ranks: int) -> RankPool:
        while self and sum(self) + num_ranks > MAX_RANKS:
            self.pop(max(self)).close()
        self[num_ranks] = pool = RankPool(num_ranks, context=warm.context())
        return pool


@pytest.fixture(scope="session")
def rank_pools() -> Iterator[dict[int, RankPool]]:
    """Pools by their number of ranks."""
    pools = RankPools()
    yield pools
    for pool in pools.values():
        pool.close()
