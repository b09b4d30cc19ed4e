"""Ranks shared by all tests: they import DeepSpeed once a session."""

from collections.abc import Iterator

import pytest

from tests.distributed.harness import RankPool


@pytest.fixture(scope="session")
def rank_pools() -> Iterator[dict[int, RankPool]]:
    """One pool for each number of ranks, started when first used."""
    pools = {num_ranks: RankPool(num_ranks) for num_ranks in (1, 2)}
    yield pools
    for pool in pools.values():
        pool.close()
