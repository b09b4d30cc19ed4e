"""The numbers of a GPU are those of a CPU, in every way to compute them."""

import pytest

from tools.gpu_check import parity
from tools.ranks import RankPool

WAYS = [*parity.ways(), *parity.compiled_ways()]


@pytest.fixture(scope="module")
def rows() -> dict[str, parity.ParityRow]:
    with RankPool(1, cuda=True) as pool:
        [found] = pool.run(parity.rows, WAYS, timeout_seconds=300)
    return {row["case"]: parity.ParityRow(**row) for row in found}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.case)
def test_losses_of_a_cpu(way: parity.Way, rows: dict[str, parity.ParityRow]) -> None:
    row = rows[way.case]
    assert row.is_equal, row
