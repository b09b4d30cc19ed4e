"""What the wall time of a run went into."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from tools.chaos.timeline import Stepped
from tools.keep.attempt import Attempt


@dataclass(kw_only=True)
class Split:
    """Seconds of wall time by what they went into.

    Attributes:
        new_steps: steps that no start before had come to.
        repeated_steps: steps that were made once more.
        saving: what checkpoints, and validation, held training up.
        restarting: from the end of an attempt to the first step of the next one.
        waiting: from the last step of an attempt to its end: until somebody notices.
        queue: from the end of a job to its next start, by Slurm.
    """

    new_steps: float = 0.0
    repeated_steps: float = 0.0
    saving: float = 0.0
    restarting: float = 0.0
    waiting: float = 0.0
    queue: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(getattr(self, each.name) for each in fields(self))


_PAUSES = ("save", "validate", "evaluate", "profile")
"""Sections of a rank that are no part of a step."""


def split(
    steps: Sequence[Stepped],
    attempts: Sequence[Attempt],
    *,
    job_starts: Sequence[float],
    submitted: float,
    ended: float,
) -> Split:
    """What the time between two moments went into.

    What it does not account for is what passes between steps, and belongs to none of these.

    Args:
        steps: that were recorded, with the moments.
        attempts: of the run, oldest first; the last may have gone on after `ended`.
        job_starts: when Slurm started the job, each time, in Unix seconds.
        submitted: when the time begins.
        ended: when it ends.
    """
    found, mark, keeper = Split(), submitted, None
    for attempt in attempts:
        if attempt.keeper != keeper:
            keeper = attempt.keeper
            begun = [moment for moment in job_starts if mark <= moment <= attempt.started]
            if begun:
                found.queue += begun[-1] - mark
                mark = begun[-1]
        until = min(attempt.ended, ended)
        own = [each for each in steps if attempt.started < each.arrived <= until]
        if not own:
            found.restarting += until - mark
            mark = until
            continue
        begins = own[0].arrived - own[0].seconds
        found.restarting += begins - mark
        for each in own:
            if each.is_new:
                found.new_steps += each.seconds
            else:
                found.repeated_steps += each.seconds
        # Not all of an attempt that went on after the end.
        share = len(own) / sum(attempt.started < each.arrived <= attempt.ended for each in steps)
        found.saving += share * sum(attempt.seconds.get(name, 0.0) for name in _PAUSES)
        found.waiting += until - own[-1].arrived
        mark = until
    found.waiting += ended - mark
    return found
