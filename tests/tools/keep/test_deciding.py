"""What is done after an attempt: every row of the table, over attempts made up."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.keep.attempt import Attempt, Kind, Verdict
from tools.keep.deciding import WITHOUT_PROGRESS, decide
from train.exit_status import ExitStatus

FAULTS: tuple[Kind, ...] = ("dead", "out of memory", "fault", "stopped", "stuck", "unknown")


def attempt(
    kind: Kind,
    *,
    first: int | None = 0,
    last: int | None = None,
    error: str | None = None,
    classes: tuple[str, ...] = (),
    step: int | None = None,
) -> Attempt:
    verdict = Verdict(kind=kind, sentence=kind, error=error, classes=list(classes), step=step)
    return Attempt(
        started=0.0, ended=1.0, num_ranks=2, first_step=first, last_step=last, status=1,
        verdict=verdict,
    )  # fmt: skip


@pytest.mark.parametrize("can_requeue", [False, True])
def test_what_has_ended_in_good_order(can_requeue: bool) -> None:
    done = decide([attempt("complete")], can_requeue=can_requeue)
    assert (done.action, done.status) == ("end", ExitStatus.COMPLETE)
    saved = decide([attempt("stopped by a signal")], can_requeue=can_requeue)
    assert saved.action == ("requeue" if can_requeue else "end")
    assert saved.status == ExitStatus.SAVED
    ended = decide([attempt("interrupted")], can_requeue=can_requeue)
    assert (ended.action, ended.status) == ("end", ExitStatus.INTERRUPTED)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_with_progress_is_tried_again_for_ever(kind: Kind) -> None:
    attempts = [attempt(kind, first=step, last=step + 5) for step in range(0, 500, 5)]
    for count in range(1, len(attempts) + 1):
        decision = decide(attempts[:count], can_requeue=True)
        assert (decision.action, decision.pause_seconds) == ("again", 0.0)


@pytest.mark.parametrize("kind", FAULTS)
def test_without_progress_it_is_given_up(kind: Kind) -> None:
    attempts = [attempt(kind, first=0, last=7)]
    for _ in range(WITHOUT_PROGRESS - 1):
        attempts.append(attempt(kind, first=5, last=7))
        assert decide(attempts, can_requeue=True).action == "again"
    attempts.append(attempt(kind, first=5, last=6))
    given_up = decide(attempts, can_requeue=True)
    assert (given_up.action, given_up.status) == ("end", ExitStatus.GIVEN_UP)
    assert f"the last {WITHOUT_PROGRESS} attempts reached no new step" in given_up.reason


def test_what_never_comes_to_a_step_is_given_up() -> None:
    attempts = [attempt("dead", first=None) for _ in range(WITHOUT_PROGRESS)]
    assert decide(attempts[:-1], can_requeue=False).action == "again"
    assert "never came to a step" in decide(attempts, can_requeue=False).reason


def test_a_stop_by_signal_between_them_is_no_vain_attempt() -> None:
    """Preempted jobs go on under one keeper after another."""
    attempts = [attempt("dead", first=0, last=4), attempt("stopped by a signal", first=0, last=9)]
    attempts += [attempt("dead", first=9, last=9), attempt("dead", first=9, last=10)]
    assert decide(attempts, can_requeue=True).pause_seconds == 0.0


def test_one_error_at_one_step_twice() -> None:
    first = attempt("fault", last=7, error="ValueError: odd", classes=("ValueError",), step=7)
    again = attempt(
        "fault", first=5, last=7, error="ValueError: odd", classes=("ValueError",), step=7
    )
    given_up = decide([first, again], can_requeue=True)
    assert (given_up.action, given_up.status) == ("end", ExitStatus.GIVEN_UP)
    assert "the same error came twice at step 7: ValueError: odd" in given_up.reason
    later = attempt(
        "fault", first=5, last=8, error="ValueError: odd", classes=("ValueError",), step=8
    )
    assert decide([first, later], can_requeue=True).action == "again"
    assert decide([again], can_requeue=True).action == "again"


def test_what_a_user_must_change_is_not_tried_again() -> None:
    wrong = attempt("user error", classes=("ConfigError", "UserError"), error="ConfigError: lr")
    assert decide([wrong], can_requeue=True).status == ExitStatus.MISTAKE


def test_what_was_computed_twice_is_not_computed_a_third_time() -> None:
    classes = ("DivergedError", "UserError")
    decision = decide([attempt("not finite", last=7, step=7, classes=classes)], can_requeue=True)
    assert (decision.action, decision.status) == ("end", ExitStatus.MISTAKE)


def test_hardware_that_errs_is_tried_again_until_it_does_so_twice() -> None:
    once = attempt("hardware", last=7, step=7, error="HardwareError: step 7", first=4)
    assert decide([once], can_requeue=True).action == "again"
    again = decide([once, once], can_requeue=True)
    assert (again.action, again.status) == ("end", ExitStatus.GIVEN_UP)


def test_a_store_that_was_away_is_tried_again_once_the_run_had_begun() -> None:
    classes = ("StorageError", "UserError", "OSError")
    away = attempt("user error", first=3, last=9, error="StorageError: s3", classes=classes, step=9)
    assert decide([away], can_requeue=True).action == "again"
    assert decide([away, away], can_requeue=True).action == "again", "stores may be away for long"
    attempts = [away] * (WITHOUT_PROGRESS + 1)
    assert decide(attempts, can_requeue=True).status == ExitStatus.GIVEN_UP
    never = attempt("user error", first=None, error="StorageError: s3", classes=classes)
    assert decide([never], can_requeue=True).status == ExitStatus.MISTAKE


@given(
    st.lists(
        st.tuples(st.sampled_from(FAULTS), st.none() | st.integers(0, 9), st.booleans()),
        min_size=1, max_size=30,
    )
)  # fmt: skip
def test_whatever_happens_it_ends(told: list[tuple[Kind, int | None, bool]]) -> None:
    """With at most ten steps to reach, no story of faults is longer than their product."""
    attempts = [
        attempt(kind, first=0, last=last, error="E: e" if says else None, step=last)
        for kind, last, says in told
    ]
    stories = [attempts[: count + 1] for count in range(len(attempts))]
    decisions = [decide(story, can_requeue=True) for story in stories]
    again = list(itertools.takewhile(lambda each: each.action == "again", decisions))
    assert len(again) <= 11 * WITHOUT_PROGRESS
    assert all(0 <= each.pause_seconds < WITHOUT_PROGRESS for each in again)
