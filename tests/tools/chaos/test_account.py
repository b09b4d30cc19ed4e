"""Wall time by what it went into."""

from dataclasses import asdict

import pytest

from tests.tools.chaos.making import attempt, stepped
from tools.chaos.account import split


def test_two_attempts_of_a_job_and_one_of_its_next_start() -> None:
    steps = [
        # Submitted at 0, started by Slurm at 2, ranks at 3: the first step begins at 9.5.
        stepped(1, 10.0, start=1),
        stepped(2, 10.5, start=1),
        # A save of 1 s; then a rank dies in a step, which the keeper knows at 14.
        stepped(3, 12.0, start=1),
        # From step 2 on once more.
        stepped(3, 20.0, start=2, is_new=False),
        stepped(4, 20.5, start=2),
        # The job is queued from 25 to 40.
        stepped(5, 50.0, start=3),
        # After the end.
        stepped(6, 60.0, start=3),
    ]
    attempts = [
        attempt(3.0, 14.0, saving=1.0),
        attempt(14.5, 25.0),
        attempt(41.0, 70.0, "stopped by a signal", keeper="another", saving=4.0),
    ]
    found = split(steps, attempts, job_starts=[2.0, 40.0], submitted=0.0, ended=51.0)
    assert asdict(found) == pytest.approx(
        {
            "queue": 2.0 + 15.0,
            "restarting": (9.5 - 2.0) + (19.5 - 14.0) + (49.5 - 40.0),
            "new_steps": 3 * 0.5 + 0.5 + 0.5,
            "repeated_steps": 0.5,
            # Of the last attempt as large a part as of its steps.
            "saving": 1.0 + 2.0,
            "waiting": (14.0 - 12.0) + (25.0 - 20.5) + (51.0 - 50.0),
        }
    )


def test_an_attempt_that_comes_to_no_step_is_all_restarting() -> None:
    attempts = [attempt(1.0, 5.0), attempt(6.0, 9.0, "stopped by a signal")]
    found = split([], attempts, job_starts=[0.5], submitted=0.0, ended=8.0)
    assert found.queue == 0.5
    assert found.restarting == 7.5
    assert found.total == 8.0
