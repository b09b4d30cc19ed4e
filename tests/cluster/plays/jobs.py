"""What Slurm and people do to jobs."""

import time

from tests.cluster.lab import Lab
from tests.cluster.plays.played import Played, disturbed, finished, submitted_again
from tools.chaos.injected import SLOW
from tools.chaos.job import Job
from tools.lab.jobs import ENDED


def warned(lab: Lab, name: str) -> Played:
    return disturbed(
        lab,
        name,
        lambda job: lab.slurm.call("scancel", "--batch", "--signal=USR1", str(job.number)),
    )


def time_limit(lab: Lab, name: str) -> Played:
    """It is near, and the warning comes; the job that is requeued has its hour again."""

    def shorten(job: Job) -> None:
        hours, minutes, _ = lab.slurm.job(job.number)["RunTime"].split(":")
        limit = 60 * int(hours) + int(minutes) + 2
        update = ("scontrol", "update", f"JobId={job.number}")
        lab.slurm.call(*update, f"TimeLimit={limit}")
        job.wait(lambda: "USR1 received" in job.output or job.state in ENDED, "the warning")
        lab.slurm.call(*update, "TimeLimit=60")

    flags = ("--time=60", "--signal=B:USR1@100")
    return disturbed(lab, name, shorten, flags=flags, environment={SLOW: "0.4"})


def requeued(lab: Lab, name: str) -> Played:
    return disturbed(lab, name, lambda job: lab.slurm.call("scontrol", "requeue", str(job.number)))


def preempted(lab: Lab, name: str) -> Played:
    def crowd_out(job: Job) -> None:
        lab.slurm.submit(
            *("--partition=high", "--exclusive", "--nodes=3", "--wrap=sleep 1"),
            directory=lab.project,
        )

    return disturbed(lab, name, crowd_out)


def cancelled(lab: Lab, name: str) -> Played:
    first = disturbed(lab, name, lambda job: lab.slurm.call("scancel", str(job.number)))
    assert first.state == "CANCELLED", first.state
    return submitted_again(lab, name, first)


def interrupted(lab: Lab, name: str) -> Played:
    """By Ctrl-C in a terminal that has an allocation; the same line goes on."""
    first = lab.allocated(name)
    first.wait_for_step(25)
    since, steps, starts = time.monotonic(), len(first.steps), first.starts
    first.type("\x03")
    first.end()
    assert first.status == 75, first.output
    assert "asking the ranks to save and stop" in first.output, first.output
    assert "on a signal; run again to continue" in first.output, first.output
    assert "Traceback" not in first.output, first.output
    return finished(lab.allocated(name), since=since, before=steps, starts=starts)


def twice(lab: Lab, name: str) -> Played:
    """A second job for the same run is refused while the first goes on."""
    refused: list[tuple[str, str]] = []

    def disturb(job: Job) -> None:
        second = lab.submit(name, flags=("--nodes=1", "--overcommit"))
        refused.append((second.end(), second.output))

    played = disturbed(lab, name, disturb, environment={SLOW: "0.3"})
    assert refused[0][0] == "FAILED", refused
    assert "is in use" in refused[0][1], refused
    return played
