"""The table of `make faults-cluster`."""

from collections.abc import Iterator

import pytest

from tests.cluster.faults import CASES, Case, fault_of, play
from tests.cluster.lab import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("cluster")) as lab:
        yield lab


@pytest.mark.long
@pytest.mark.timeout(1800)  # a case waits for several things, one after another
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_fault(case: Case, lab: Lab) -> None:
    assert fault_of(result := play(case, lab)) is None, result
