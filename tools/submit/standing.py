"""Whether a run has anything left to do."""

from pathlib import Path
from typing import Final

from tools.keep.attempt import ATTEMPTS_NAME, Attempt, read_attempts
from tools.keep.deciding import decide
from train.errors import DataError, UserError
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.storage.record import Count, Record, content_of, parse

_BYTES_AT_MOST: Final = 1 << 20
_FOR_A_PERSON: Final = (ExitStatus.GIVEN_UP, ExitStatus.MISTAKE, ExitStatus.INTERRUPTED)


class _Summary(Record):
    """What of a complete run's summary is looked at here."""

    steps: Count


def complete(run: Path, *, steps: int) -> str | None:
    """That a run has made all its steps; None if it has not.

    Args:
        run: its directory.
        steps: that it is to make.
    """
    try:
        # The last thing that a run writes, and the first that it removes when it goes on. Its last
        # step may have left no other record: it was left out, or had nothing to score.
        path = RunDirectory(run).summary
        text = content_of(path, limit_bytes=_BYTES_AT_MOST)
        made = parse(_Summary, text, name=str(path), error=DataError, remedy="remove it").steps
    except (OSError, UserError):
        return None  # the run itself will judge
    if made < steps:
        return None
    return f"{run} is complete ({made:,} of {steps:,} steps)"


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
