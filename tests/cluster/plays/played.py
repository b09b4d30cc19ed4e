"""A job to which something is done, and what came of it."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.cluster.lab import Lab
from tools.chaos.job import Job
from tools.lab.jobs import ENDED

DISTURBED_AT = 25


@dataclass(kw_only=True)
class Played:
    """A run that has ended.

    Attributes:
        state: of its last job.
        job: the last one.
        seconds: from the fault to the next step that was new.
        steps_lost: made once more.
        told: what an undisturbed run is told to equal it.
        relative: what losses may differ by; 0 for the same bits.
        environment: by which its checkpoints are reached.
    """

    state: str
    job: Job
    seconds: float | None = None
    steps_lost: int = 0
    told: Sequence[str] = ()
    relative: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)


def disturbed(
    lab: Lab,
    name: str,
    disturb: Callable[[Job], object],
    *overrides: str,
    flags: tuple[str, ...] = (),
    environment: Mapping[str, str] = {},
) -> Played:
    """A job to which something is done at a step, and which is waited for."""
    job = lab.submit(name, *overrides, flags=flags, environment=environment)
    job.wait_for_step(DISTURBED_AT)
    starts = job.starts
    disturb(job)
    return finished(job, since=time.monotonic(), before=len(job.steps), starts=starts)


def finished(job: Job, *, since: float, before: int, starts: int) -> Played:
    """Wait for the end of a job, and on the way for its next new step.

    Args:
        job: that was disturbed.
        since: when.
        before: records of steps there were.
        starts: of the run there were.
    """
    made = max(job.steps[:before], default=0)
    job.wait(lambda: job.starts > starts or job.state in ENDED, "a start")
    made = max(made, *(job.steps[before:] or [0]))
    job.wait(lambda: max(job.steps, default=0) > made or job.state in ENDED, "a new step")
    seconds = time.monotonic() - since
    state = job.end()
    return Played(
        state=state, job=job, seconds=seconds, steps_lost=len(job.steps) - len(set(job.steps))
    )


def submitted_again(
    lab: Lab,
    name: str,
    played: Played,
    *overrides: str,
    environment: Mapping[str, str] = {},
) -> Played:
    """The same line once more, after a job that is over."""
    since, steps, starts = time.monotonic(), len(played.job.steps), played.job.starts
    job = lab.submit(name, *overrides, environment=environment)
    return finished(job, since=since, before=steps, starts=starts)


def send(number: signal.Signals, *, rank: int) -> Callable[[Job], object]:
    """A signal to the process of a rank."""
    return lambda job: job.ranks()[rank].send_signal(number)
