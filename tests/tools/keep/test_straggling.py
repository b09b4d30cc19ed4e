"""Who computes longer than their like, over steps made up."""

import pytest

from tools.keep.straggling import WINDOW_STEPS, WINDOWS, Stragglers


def steps(
    seconds: dict[int, float],
    *,
    windows: float = WINDOWS,
    stages: dict[int, int] | None = None,
    into: Stragglers | None = None,
    first: int = 0,
) -> Stragglers:
    """So many windows of steps, each of which takes a rank so long."""
    found = into or Stragglers()
    for rank in seconds:
        found.meet(rank, stage=(stages or {}).get(rank, 0))
    for step in range(first, first + int(windows * WINDOW_STEPS)):
        for rank, each in seconds.items():
            found.add(rank, step=step, seconds=each)
    return found


def test_one_of_four_is_slow() -> None:
    found = steps({0: 1.0, 1: 1.0, 2: 1.3, 3: 1.1})
    assert found.slow == {2: pytest.approx(1.3)}


def test_of_two_the_slower_one() -> None:
    assert list(steps({0: 1.25, 1: 1.0}).slow) == [0]


def test_twenty_per_cent_are_no_reason() -> None:
    assert steps({0: 1.0, 1: 1.19, 2: 1.0}).slow == {}


def test_nine_windows_are_none() -> None:
    found = steps({0: 1.0, 1: 2.0}, windows=WINDOWS - 0.1)
    assert found.slow == {}
    steps({0: 1.0, 1: 2.0}, windows=0.1, first=10 * WINDOW_STEPS - 1, into=found)
    assert list(found.slow) == [1]


def test_one_quick_window_ends_it() -> None:
    found = steps({0: 1.0, 1: 2.0}, windows=9)
    steps({0: 1.0, 1: 1.0}, windows=1, first=90, into=found)
    steps({0: 1.0, 1: 2.0}, windows=9, first=100, into=found)
    assert found.slow == {}
    steps({0: 1.0, 1: 2.0}, windows=1, first=190, into=found)
    assert list(found.slow) == [1]
    steps({0: 1.0, 1: 1.0}, windows=1, first=200, into=found)
    assert found.slow == {}, "it is quick again"


def test_a_stage_with_more_work_is_not_slow() -> None:
    seconds = {0: 1.0, 1: 1.0, 2: 2.0, 3: 2.0, 4: 2.5}
    found = steps(seconds, stages={0: 0, 1: 0, 2: 1, 3: 1, 4: 1})
    assert list(found.slow) == [4]


def test_alone_nobody_is_slow() -> None:
    assert steps({0: 1.0, 1: 9.0}, stages={0: 0, 1: 1}).slow == {}


def test_one_slow_step_is_no_slow_rank() -> None:
    found = Stragglers()
    for rank in (0, 1):
        found.meet(rank, stage=0)
    for step in range(300):
        found.add(0, step=step, seconds=1.0)
        found.add(1, step=step, seconds=90.0 if step == 55 else 1.0)
    assert found.slow == {}


def test_steps_made_again_after_a_rollback_count_once() -> None:
    found = steps({0: 1.0, 1: 2.0}, windows=5)
    for _ in range(9):
        steps({0: 1.0, 1: 2.0}, windows=1, first=40, into=found)
    assert found.slow == {}


def test_who_says_nothing_of_its_time_is_left_in_peace() -> None:
    """Ranks on GPUs, whose hosts do not know."""
    found = Stragglers()
    for step in range(300):
        found.add(0, step=step, seconds=1.0)
    assert found.slow == {}
