"""Whether a run has anything left to do."""

from pathlib import Path
from typing import Final

from tools.keep.attempt import ATTEMPTS_NAME, Attempt, read_attempts
from tools.keep.deciding import decide
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

_FOR_A_PERSON: Final = (ExitStatus.GIVEN_UP, ExitStatus.MISTAKE, ExitStatus.INTERRUPTED)


def complete(run: Path, *, steps: int) -> str | None:
    """That a run has made all its steps; None if it has not.

    Args:
        run: its directory.
        steps: that it is to make.

    Raises:
        DataError: its records are damaged.
    """
    directory = RunDirectory(run)
    if not directory.summary.exists() or not directory.metrics.exists():
        return None
    train = read_metrics(directory.metrics).train
    if not train or train[-1].step < steps:
        return None
    return f"{run} is complete ({train[-1].step:,} of {steps:,} steps)"


def over(run: Path, *, steps: int, first_job: int) -> str | None:
    """Why a run's next job has nothing to do; None if it has.

    Args:
        run: its directory.
        steps: that it is to make.
        first_job: number of the first job of its chain. What was given up before is what a person
            has submitted the chain for.

    Raises:
        DataError: its records are damaged.
    """
    if (why := complete(run, steps=steps)) is not None:
        return why
    attempts = read_attempts(run / ATTEMPTS_NAME)
    if not attempts or not _is_since(attempts[-1], first_job):
        return None
    decision = decide(attempts, can_requeue=True)
    if decision.action != "end" or decision.status not in _FOR_A_PERSON:
        return None
    return f"{run} was given up, for {decision.reason}; {attempts[-1].verdict.sentence}"


def _is_since(attempt: Attempt, first_job: int) -> bool:
    """Whether an attempt was made by a job that was submitted no earlier: numbers rise."""
    return attempt.job is not None and attempt.job.isdecimal() and int(attempt.job) >= first_job
