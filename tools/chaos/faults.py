"""Faults, each done to a job on the lab, and what mends itself after a while."""

import contextlib
import signal
import time
from pathlib import Path

import psutil

from tools.chaos.drawing import Draw, Kind
from tools.chaos.job import Job
from tools.chaos.scoring import Fault
from tools.lab import daemons, slurm
from tools.lab.daemons import LabError, Record

AWAY_SECONDS = 40.0
"""A node that has died comes back after so long: Slurm and the keeper have noticed by then."""
FROZEN_SECONDS = 15.0


class Faults:
    """Makes faults.

    Args:
        job: that trains; its ranks run on a node each.
        cluster: of the lab, that it runs on.
        store: of the lab, that it saves to.
        striking: directory for `tools.chaos.injected.STRIKING`.
    """

    def __init__(self, job: Job, *, cluster: Record, store: Record, striking: Path) -> None:
        self._job = job
        self._cluster = cluster
        self._store = store
        self._striking = striking
        self._away: dict[str, float] = {}
        self._thaws: float | None = None
        self._frozen = contextlib.ExitStack()

    def __enter__(self) -> "Faults":
        """Nothing is wrong yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """The store goes on; nodes stay away."""
        self._frozen.close()

    def make(self, draw: Draw, *, start: int, attempts: int) -> Fault:
        """Make a fault.

        Args:
            draw: which.
            start: of the run, that makes steps.
            attempts: that have ended.

        Raises:
            LabError: there is nothing that it could hit.
        """
        ranks = self._job.ranks()
        nodes = {rank: process.environ()["SLURMD_NODENAME"] for rank, process in ranks.items()}
        if draw.kind is Kind.NODE_DEAD:
            # The keeper's own is no fault that a keeper could judge: Slurm requeues the job.
            nodes = {rank: node for rank, node in nodes.items() if node != self._job.first_node}
        if not nodes:
            raise LabError(f"{draw.kind}: no rank is on a node that may die")
        rank = sorted(nodes)[int(draw.choice * len(nodes))]
        hit = None if draw.kind is Kind.STORE_FROZEN else rank
        fault = Fault(
            kind=draw.kind,
            rank=hit,
            node=None if hit is None else nodes[rank],
            made=time.time(),
            start=start,
            attempts=attempts,
        )
        self._do(draw.kind, ranks[rank], rank=rank, node=nodes[rank])
        return fault

    def _do(self, kind: Kind, process: psutil.Process, *, rank: int, node: str) -> None:
        match kind:
            case Kind.RANK_DEAD:
                process.send_signal(signal.SIGKILL)
            case Kind.RANK_STOPPED:
                process.send_signal(signal.SIGSTOP)
            case Kind.NODE_DEAD:
                slurm.kill_node(self._cluster, node)
                self._away[node] = time.time() + AWAY_SECONDS
            case Kind.NOT_FINITE:
                (self._striking / str(rank)).touch()
            case Kind.STORE_FROZEN:
                self._frozen.enter_context(daemons.frozen(self._store))
                self._thaws = time.time() + FROZEN_SECONDS

    def mend(self) -> bool:
        """Mend what has been broken for long enough; whether nothing is broken any more."""
        now = time.time()
        for node in [node for node, due in self._away.items() if now >= due]:
            slurm.revive_node(self._cluster, node)
            del self._away[node]
        if self._thaws is not None and now >= self._thaws:
            self._frozen.close()
            self._thaws = None
        return not self._away and self._thaws is None
