"""Ranks and keepers that die, are stopped, or find no memory."""

import resource
import signal
import time

from tests.cluster.lab import Lab
from tests.cluster.plays.played import Played, disturbed, finished, send, submitted_again
from tools.chaos.injected import GREEDY, SLOW
from tools.chaos.job import Job
from tools.lab.daemons import LabError

ROOM_BYTES = 1 << 28


def rank_killed(lab: Lab, name: str) -> Played:
    return disturbed(lab, name, send(signal.SIGKILL, rank=1))


def rank_stopped(lab: Lab, name: str) -> Played:
    return disturbed(
        lab,
        name,
        send(signal.SIGSTOP, rank=1),
        environment={"KEEP_OPTIONS": "--least-seconds=3"},
    )


def killed_while_importing(lab: Lab, name: str) -> Played:
    """Before it can say a word itself; srun says nothing while the other lives."""
    job = lab.submit(name)
    job.wait(lambda: _runs(job, 1), "a rank")
    job.ranks()[1].send_signal(signal.SIGKILL)
    return finished(job, since=time.monotonic(), before=0, starts=0)


def _runs(job: Job, rank: int) -> bool:
    try:
        return rank in job.ranks()
    except LabError:
        return False


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


def keeper_killed(lab: Lab, name: str) -> Played:
    first = disturbed(lab, name, lambda job: job.keeper().send_signal(signal.SIGKILL))
    assert first.state == "FAILED", first.state
    return submitted_again(lab, name, first)


def without_memory(lab: Lab, name: str) -> Played:
    """A rank is given less than its next step asks for; a new process has it all."""

    def disturb(job: Job) -> None:
        rank = job.ranks()[1]
        most = rank.memory_info().vms + ROOM_BYTES // 2
        resource.prlimit(rank.pid, resource.RLIMIT_AS, (most, most))

    return disturbed(lab, name, disturb, environment={GREEDY: str(ROOM_BYTES), SLOW: "0.05"})
