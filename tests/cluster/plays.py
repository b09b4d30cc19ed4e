"""Faults, each done to a job on the cluster."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.cluster.lab import Lab
from tests.train.fault_plays import small_disk
from tools.chaos.injected import BROKEN, SLOW, SPIKING, STRUCK
from tools.chaos.job import Job
from tools.lab import daemons

DISTURBED_AT = 25
FREEZE_SECONDS = 60.0


@dataclass(kw_only=True)
class Played:
    """A run that has ended.

    Attributes:
        state: of its last job.
        job: the last one.
        seconds: from the fault to the next step that was new.
        steps_lost: made once more.
        told: what an undisturbed run is told to equal it.
        environment: by which its checkpoints are reached.
    """

    state: str
    job: Job
    seconds: float | None = None
    steps_lost: int = 0
    told: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


def disturbed(
    lab: Lab,
    name: str,
    disturb: Callable[[Job], object],
    *overrides: str,
    flags: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    at_step: int = DISTURBED_AT,
) -> Played:
    """A job to which something is done at a step, and which is waited for."""
    job = lab.submit(name, *overrides, flags=flags, environment=environment or {})
    job.wait_for_step(at_step)
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
    made = max(job.steps[:before])
    ended = "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"
    job.wait(lambda: job.starts > starts or job.state in ended, "a start")
    made = max(made, *(job.steps[before:] or [0]))
    job.wait(lambda: max(job.steps) > made or job.state in ended, "a new step")
    seconds = time.monotonic() - since
    state = job.end()
    return Played(
        state=state, job=job, seconds=seconds, steps_lost=len(job.steps) - len(set(job.steps))
    )


def rank_killed(lab: Lab, name: str) -> Played:
    return disturbed(lab, name, lambda job: job.ranks()[1].send_signal(signal.SIGKILL))


def rank_stopped(lab: Lab, name: str) -> Played:
    return disturbed(
        lab,
        name,
        lambda job: job.ranks()[1].send_signal(signal.SIGSTOP),
        environment={"KEEP_OPTIONS": "--least-seconds=3"},
    )


def warned(lab: Lab, name: str) -> Played:
    return disturbed(
        lab,
        name,
        lambda job: lab.slurm.call("scancel", "--batch", "--signal=USR1", str(job.number)),
    )


def requeued(lab: Lab, name: str) -> Played:
    return disturbed(lab, name, lambda job: lab.slurm.call("scontrol", "requeue", str(job.number)))


def preempted(lab: Lab, name: str) -> Played:
    def crowd_out(job: Job) -> None:
        lab.slurm.submit(
            *("--partition=high", "--exclusive", "--nodes=3", "--wrap=sleep 1"),
            directory=lab.project,
        )

    return disturbed(lab, name, crowd_out)


def submitted_again(lab: Lab, name: str, played: Played) -> Played:
    """The same line once more, after a job that is over."""
    since, steps, starts = time.monotonic(), len(played.job.steps), played.job.starts
    return finished(lab.submit(name), since=since, before=steps, starts=starts)


def cancelled(lab: Lab, name: str) -> Played:
    first = disturbed(lab, name, lambda job: lab.slurm.call("scancel", str(job.number)))
    assert first.state == "CANCELLED", first.state
    return submitted_again(lab, name, first)


def keeper_killed(lab: Lab, name: str) -> Played:
    first = disturbed(lab, name, lambda job: job.keeper().send_signal(signal.SIGKILL))
    assert first.state == "FAILED", first.state
    return submitted_again(lab, name, first)


def time_limit(lab: Lab, name: str) -> Played:
    """A minute, of which the warning leaves some; each step takes long."""
    return disturbed(
        lab,
        name,
        lambda job: None,
        flags=("--time=1", "--signal=B:USR1@20"),
        environment={SLOW: "0.5"},
    )


def killed_while_saving(lab: Lab, name: str) -> Played:
    def disturb(job: Job) -> None:
        checkpoints = job.directory / "checkpoints"
        job.wait(lambda: list(checkpoints.glob("step_00000040*/chunks*")), "a checkpoint begun")
        job.ranks()[0].send_signal(signal.SIGKILL)

    return disturbed(lab, name, disturb)


def killed_while_restoring(lab: Lab, name: str) -> Played:
    def disturb(job: Job) -> None:
        before, killed = len(job.attempts), time.time()
        for process in job.ranks().values():
            process.send_signal(signal.SIGKILL)
        job.wait(lambda: len(job.attempts) > before, "the next attempt")
        # The lease is taken anew once the ranks have met, and before anything is read.
        job.wait(lambda: _locked_since(job, killed), "ranks that have met")
        job.ranks()[1].send_signal(signal.SIGKILL)

    return disturbed(lab, name, disturb)


def _locked_since(job: Job, moment: float) -> bool:
    """Whether somebody has taken the run's lease since, or has renewed it."""
    return any(path.stat().st_mtime > moment + 1 for path in job.directory.glob(".lock.*"))


def struck(lab: Lab, name: str) -> Played:
    """Hardware: it differs on repetition. The job ends, and names the node."""
    job = lab.submit(name, environment={STRUCK: "1 30"})
    job.wait_for_step(29)
    return Played(state=job.end(), job=job)


def broken(lab: Lab, name: str) -> Played:
    job = lab.submit(name, environment={BROKEN: "30"})
    return Played(state=job.end(), job=job, told=["left_out=[30]"])


def spiking(lab: Lab, name: str) -> Played:
    job = lab.submit(
        name,
        *("spikes={window_steps: 16, threshold: 40, patience_steps: 2}", "optim.lr=1e-4"),
        environment={SPIKING: "44 45"},
    )
    return Played(state=job.end(), job=job, told=["left_out=[[44, 45]]", "optim.lr=1e-4"])


def store_frozen(lab: Lab, name: str) -> Played:
    record = lab.store()
    job = lab.submit(
        name,
        *("run_mirror=s3://faults/" + name,),
        environment={**record.environment, SLOW: "0.2"},
    )
    job.wait_for_step(DISTURBED_AT)
    with daemons.frozen(record):
        time.sleep(FREEZE_SECONDS)
    return Played(state=job.end(), job=job, environment=record.environment)


def disk_full(lab: Lab, name: str) -> Played:
    """The job ends, and says why; with room it goes on."""
    place = lab.directory / f"{name}-disk"
    with small_disk(place, num_bytes=16384) as disk:
        job = lab.submit(name, f"checkpoint.directory={disk / 'saved'}")
        state = job.end()
    return Played(state=state, job=job)


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
