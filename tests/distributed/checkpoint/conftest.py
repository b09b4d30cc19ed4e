"""Fixtures of checkpoints."""

from pathlib import Path

import pytest

from tests.distributed.checkpoint.nearby import TWO, save_steps_nearby
from tools.ranks import RankPool


@pytest.fixture(scope="module")
def saved_nearby(
    rank_pools: dict[int, RankPool], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float]]:
    """Two steps of two nodes, each with a copy of the other's share."""
    place = tmp_path_factory.mktemp("local")
    return place, rank_pools[2].run(save_steps_nearby, place, TWO, 1, 1, 2)[0]
