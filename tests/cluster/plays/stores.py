"""Disks and stores that are full, frozen, or somebody else's."""

import re
import time

from tests.cluster.lab import Lab
from tests.cluster.plays.played import DISTURBED_AT, Played, submitted_again
from tests.train.fault_plays import small_disk
from tools.chaos.injected import SLOW
from tools.lab import daemons
from train.storage.lease import Lease
from train.storage.place import Place

FREEZE_SECONDS = 60.0


def store_frozen(lab: Lab, name: str) -> Played:
    """While the run saves to it: it goes on meanwhile, and what it has made is saved later."""
    record = lab.store()
    job = lab.submit(
        name,
        *("run_mirror=s3://faults/" + name,),
        environment={**record.environment, SLOW: "0.2"},
    )
    job.wait_for_step(DISTURBED_AT)
    with daemons.frozen(record):
        since = time.monotonic()
        job.wait_for_step(max(job.steps) + 1)
        seconds = time.monotonic() - since
        time.sleep(FREEZE_SECONDS - seconds)
    return Played(state=job.end(), job=job, seconds=seconds, environment=record.environment)


def disk_full(lab: Lab, name: str) -> Played:
    """The job ends, and says why; with room it goes on."""
    place = lab.directory / f"{name}-disk"
    with small_disk(place, num_bytes=16384) as disk:
        job = lab.submit(name, f"checkpoint.directory={disk / 'saved'}")
        state = job.end()
    return Played(state=state, job=job)


def lease_lost(lab: Lab, name: str) -> Played:
    """Somebody has taken the run's directory over, for whom it looked dead, and goes away."""
    job = lab.submit(name, environment={SLOW: "0.3"})
    job.wait_for_step(DISTURBED_AT)
    [mine] = job.directory.glob(".lock.*")
    number = int(re.sub(r"\D", "", mine.name))
    other = Lease(Place.of(job.directory), instead="")
    other._claim(number + 1)  # pyright: ignore[reportPrivateUsage]
    starts = job.starts
    try:
        state = job.end()
    finally:
        other.release()
    first = Played(state=state, job=job)
    assert first.state == "FAILED", (first.state, job.output)
    assert "was taken over by another process" in job.output, job.output
    newest = max(path.name for path in (job.directory / "checkpoints").glob("step_*"))
    assert newest == "step_00000020", f"{newest} was saved after the lease was lost"
    assert job.starts == starts
    return submitted_again(lab, name, first)
