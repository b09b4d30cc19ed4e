"""The numbers of a GPU are those of a CPU, in every way to compute them."""

import pytest

from tools.gpu_check import parity
from tools.ranks import RankPool


@pytest.fixture(scope="module")
def rows() -> dict[str, parity.ParityRow]:
    with RankPool(1, cuda=True) as pool:
        [found] = pool.run(parity.rows, list(parity.ways()), timeout_seconds=300)
    return {row["case"]: parity.ParityRow(**row) for row in found}


@pytest.mark.parametrize("way", parity.ways(), ids=", ".join)
def test_losses_of_a_cpu(way: tuple[str, ...], rows: dict[str, parity.ParityRow]) -> None:
    row = rows[", ".join(way)]
    assert row.is_equal, row
