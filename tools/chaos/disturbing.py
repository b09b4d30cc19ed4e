"""Fault after fault, at even distances, while a job trains."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tools.chaos.drawing import Draw
from tools.chaos.faults import Faults
from tools.chaos.job import Job
from tools.chaos.scoring import Fault
from tools.chaos.timeline import Stepped, Timeline, next_new
from tools.lab.daemons import LabError

_TURN_SECONDS: Final = 0.05
_FIRST_STEP_SECONDS: Final = 300.0
_NEXT_STEP_SECONDS: Final = 300.0
"""After which a run that a fault was done to is thought to go on no more."""


@dataclass(kw_only=True)
class Disturbed:
    """What was done to a run, and when.

    Attributes:
        submitted: when the job was, in Unix seconds.
        ended: when the last fault had been got over.
        faults: that were made.
        job_starts: when Slurm has started the job, each time.
        timeline: of the run.
    """

    submitted: float
    ended: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    job_starts: list[float] = field(default_factory=list)
    timeline: Timeline

    def recovered(self, fault: Fault) -> Stepped | None:
        """The next new step after a fault; None if there is none yet."""
        return next_new(
            self.timeline.steps,
            since=fault.made,
            start=fault.start,
            ends_an_attempt=fault.ends_an_attempt,
        )


def disturb(
    job: Job,
    faults: Faults,
    draws: Iterator[Draw],
    *,
    submitted: float,
    minutes: float,
    every_seconds: float,
    say: Callable[[str], None],
) -> Disturbed:
    """Make faults until the minutes are over, each once the one before has been got over.

    Args:
        job: that was submitted, and trains.
        faults: makes them.
        draws: which.
        submitted: when the job was, in Unix seconds.
        minutes: of the job, from then on.
        every_seconds: a fault is due.
        say: tells whoever watches.

    Raises:
        LabError: the job makes no step any more.
    """
    done = Disturbed(submitted=submitted, timeline=Timeline(run=job.directory))

    def look() -> bool:
        """Take what is new, and note when Slurm has started the job; whether there is a step."""
        if done.timeline.look() and (started := job.started) not in done.job_starts:
            done.job_starts.append(started)
        return bool(done.timeline.steps)

    job.wait(look, "a step", seconds=_FIRST_STEP_SECONDS)
    due, until = time.time() + every_seconds, submitted + 60 * minutes
    fault: Fault | None = None
    while True:
        time.sleep(_TURN_SECONDS)
        look()
        is_mended = faults.mend()
        now = time.time()
        if fault is not None:
            if (step := done.recovered(fault)) is None:
                if now - fault.made > _NEXT_STEP_SECONDS:
                    raise LabError(f"no new step after {fault.kind}:\n{job.output[-4000:]}")
                continue
            say(f"{fault.kind}: a new step after {step.arrived - fault.made:.1f} s")
            fault = None
            # A run that has taken long gets time for what it does between two faults.
            due = max(due, now + every_seconds / 2)
        if not is_mended:
            continue
        if now >= until:
            break
        if now >= due:
            due += every_seconds * max(1, -(-(now - due) // every_seconds))
            fault = faults.make(next(draws), start=done.timeline.starts, attempts=len(job.attempts))
            done.faults.append(fault)
    done.ended = time.time()
    return done
