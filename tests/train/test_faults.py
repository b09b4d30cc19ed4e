"""The table of faults, case by case."""

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.train.faults import CASES, Case, Lab, Result, fault_of, play

SLOW, *_ = CASES
LONG = ("saving", "throttled", "disk full", "stale shared memory", "leaves", "more samples")
"""In make test-all: checkpoints go the way that data go, tests of storage read slowly and fill
disks, shared memory takes three runs, and other indices that lie stop a run the same way."""
QUICK = [
    pytest.param(
        case,
        id=case.name,
        marks=[pytest.mark.long] if any(word in case.name for word in LONG) else [],
    )
    for case in CASES[1:]
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("faults")) as lab:
        lab.losses()
        yield lab


@pytest.fixture(scope="module")
def frozen(lab: Lab) -> Iterator[Future[Result]]:
    with ThreadPoolExecutor(1) as background:
        yield background.submit(play, SLOW, lab)


def whenever(case: Case) -> Case:
    """Without its bound of time, which is the table's."""
    return replace(case, within_seconds=math.inf)


@pytest.mark.parametrize("case", QUICK)
def test_a_fault(case: Case, lab: Lab, frozen: Future[Result]) -> None:
    result = play(case, lab)
    assert fault_of(whenever(case), result) is None, result


def test_the_server_frozen_for_a_minute(frozen: Future[Result]) -> None:
    """Last: it waited while the others ran."""
    result = frozen.result(timeout=150)
    assert fault_of(whenever(SLOW), result) is None, result
