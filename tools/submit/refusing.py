"""What is wrong with a submission, before anything is submitted."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from parallel.zero.config import IN_FP8
from tools.plan.given import given_plan, memory_fault
from tools.plan.machines import Machine, machine_for
from tools.submit.calling import Job
from tools.submit.flags import digest_of, is_for
from tools.submit.job import setup_faults
from tools.submit.standing import complete
from train.claim import stored_elsewhere
from train.cluster import ClusterConfig
from train.config import RunConfig, batch_fault
from train.storage.lease import held_by
from train.storage.place import Place

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def faults_of(config: RunConfig, cluster: ClusterConfig, *, queue: Sequence[Job]) -> list[str]:
    """Why a run is not submitted, a sentence each.

    Args:
        config: the run.
        cluster: where it is to go.
        queue: jobs of this user that wait or run.
    """
    run = config.directory.path
    found = [
        layout_fault(config, cluster),
        copies_fault(config, cluster),
        stored_elsewhere(config),
        queue_fault(run, queue) or lease_fault(config, queue),
        *setup_faults(cluster),
    ]
    if (why := complete(run, steps=config.steps)) is not None:
        found.append(f"run_directory: {why}: raise steps, or name another")
    return [each for each in found if each is not None]


def layout_fault(config: RunConfig, cluster: ClusterConfig) -> str | None:
    """That the layout does not go with the ranks, or does not fit them; None if it does."""
    if (fault := batch_fault(config, ranks=cluster.ranks)) is not None:
        return fault
    if unplanned(config, cluster) is not None:
        return None
    machine = machine_of(cluster)
    plan = given_plan(config, machine, ranks=cluster.ranks)
    if (fault := memory_fault(plan, machine)) is None:
        return None
    return f"layout: a rank of {cluster.ranks} x {machine.device} {fault}"


def copies_fault(config: RunConfig, cluster: ClusterConfig) -> str | None:
    """That there are no nodes for the copies of local checkpoints; None if there are."""
    local = config.checkpoint.local
    if local is None or local.copies < cluster.nodes:
        return None
    return (
        f"checkpoint.local.copies: {local.copies} of each node's share, but cluster.nodes is "
        f"{cluster.nodes}: set it to {cluster.nodes - 1}, or take more nodes"
    )


def unplanned(config: RunConfig, cluster: ClusterConfig) -> str | None:
    """Why the planner cannot say whether a run fits; None if it can."""
    if cluster.gpu == "other":
        return "cluster.gpu: other: the planner does not know it"
    if config.precision in IN_FP8:
        return "precision: there are no rates of fp8"
    if config.zero.offload_directory is not None and cluster.gpu is not None:
        return "zero.offload_directory: only training on CPUs is planned with it"
    return None


def machine_of(cluster: ClusterConfig) -> Machine:
    """What the planner knows of a cluster's ranks."""
    assert cluster.gpu != "other", "the planner is not asked"
    machine, _ = machine_for(cluster.gpu or "cpu", None)
    update: dict[str, object] = {"ranks_per_node": cluster.ranks_per_node}
    if cluster.gpu is None and (memory := cluster.memory_per_node) is not None:
        # Slurm counts in MiB where nothing stands behind the number; 0 is all that a node has.
        size = int(memory.rstrip("KMGT")) * _UNITS.get(memory[-1], 2**20)
        update |= {"memory_bytes": size / cluster.ranks_per_node} if size else {}
    return machine.model_copy(update=update)


def queue_fault(run: Path, queue: Sequence[Job]) -> str | None:
    """That a job for a run waits or runs already; None if none does."""
    mine = digest_of(run)
    for job in queue:
        if is_for(job.comment, mine):
            return (
                f"run_directory: job {job.number} for {run} is {job.state.lower()} already: wait "
                f"for it, end it with scancel {job.number}, or name another directory"
            )
    return None


def lease_fault(config: RunConfig, queue: Sequence[Job]) -> str | None:
    """That something writes the run right now, whatever started it; None if nothing does."""
    queued = {str(job.number) for job in queue}
    name = f"run_directory: {config.run_directory}"
    places = [(name, Place.of(config.directory.path))]
    with contextlib.suppress(OSError):  # no such place here: the ranks will see to it
        if config.mirror is not None:
            name = f"run_mirror: {config.run_mirror}"
        places.append((name, config.checkpoints_of(config.directory)))
    for name, place in places:
        holder, lives = None, None
        with contextlib.suppress(OSError):  # a store that does not answer: likewise
            holder, lives = held_by(place)
        if holder is not None and (lives or holder.job in queued):
            return f"{name} is being written: {holder}; wait for it, or end it"
    return None
