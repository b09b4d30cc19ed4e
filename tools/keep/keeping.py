"""One attempt after another: where each is made, and what came of it."""

import argparse
import os
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tools.keep.asked import Asked
from tools.keep.attempt import Attempt, Attempts, Verdict
from tools.keep.deadline import Deadlines
from tools.keep.deciding import Decision, decide
from tools.keep.fitness import reports_of, unfit
from tools.keep.judging import (
    Found,
    judge,
    out_of_memory,
    suspects,
    too_slow,
    with_dead_nodes,
)
from tools.keep.launching import SPEAKS
from tools.keep.listening import Listener
from tools.keep.nodes import memory_kills, silent, tried
from tools.keep.placing import Allocation, Placement, has_better, placed
from tools.keep.replanning import overrides_on
from tools.keep.settings import Settings
from tools.keep.starting import Place, Starter
from tools.keep.watching import Watch
from train.watch.memory_kills import out_of_memory_kills

FOR_ITS_OWN_REASON: Final = (
    *("complete", "stopped by a signal", "interrupted", "user error", "not finite", "slow"),
)
"""Kinds of ends at which no node is suspected to be dead."""
KEEPER = f"{socket.gethostname()} {os.getpid()} {time.time():.0f}"


def try_out(allocation: Allocation, *, inside: Sequence[str]) -> Allocation:
    """A job's nodes once each has been tried; without those that do not answer.

    Args:
        allocation: of the job.
        inside: words that enter a container.
    """
    gone = silent(allocation.nodes)
    for node in gone:
        say(f"{node} does not answer: left out")
    nodes = tuple(node for node in allocation.nodes if node not in gone)
    if not nodes:
        return replace(allocation, nodes=nodes)
    lines = tried(nodes, inside=inside, environment=os.environ)
    found = unfit(reports_of(lines), nodes)
    for node, doubt in found.items():
        say(f"{node} {doubt.why}, when it was tried")
    return replace(allocation, nodes=nodes, tried=found)


class Keeping:
    """What attempts have in common, and where the next one is made.

    Args:
        options: of the command.
        settings: of the run.
        starter: of ranks.
        attempts: of the run so far.
        asked: what the keeper itself is told.
        allocation: nodes to choose from; None where there is no choice.
        job: of Slurm; None without.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        settings: Settings,
        starter: Starter,
        attempts: Attempts,
        asked: Asked,
        allocation: Allocation | None,
        *,
        job: str | None,
    ) -> None:
        self._options = options
        self._settings = settings
        self._starter = starter
        self._attempts = attempts
        self._asked = asked
        self._allocation = allocation
        self._job = job
        self._kills: dict[str, int] = {}
        self._named: dict[str, str] = {}
        self._place = Place()
        self._placement: Placement | None = None
        self.has_place = allocation is None or self._has_first_place()
        """Whether there are nodes for the first attempt."""

    def _has_first_place(self) -> bool:
        earlier = self._settings.earlier()
        assert self._allocation is not None, "or there is nothing to choose"
        while (placement := placed(earlier, self._allocation)) is not None:
            if self._settle(placement):
                return True
        return False

    def decided(self, *, can_requeue: bool) -> Decision:
        """What to do after the last attempt; the next one is made where that says."""
        while True:
            decision = decide(
                self._attempts.all, can_requeue=can_requeue, allocation=self._allocation
            )
            if decision.action != "again" or self._allocation is None:
                return decision
            assert decision.placement is not None, "or it were not again"
            if self._settle(decision.placement):
                return decision

    def _settle(self, placement: Placement) -> bool:
        """Find the layout that goes with a placement; without one, remember that there is none."""
        allocation = self._allocation
        assert allocation is not None, "or nothing was placed"
        num_nodes = len(placement.nodes)
        overrides: tuple[str, ...] | None = ()
        if num_nodes < allocation.num_wanted:
            overrides = overrides_on(
                tuple(self._options.arguments),
                ranks=num_nodes * allocation.ranks_per_node,
                ranks_per_node=allocation.ranks_per_node,
            )
        if overrides is None:
            impossible = allocation.impossible | {num_nodes}
            self._allocation = replace(allocation, impossible=impossible)
            return False
        self._place = Place(nodes=placement.nodes, overrides=overrides)
        self._placement = placement
        for node, why in placement.in_spite.items():
            if self._named.get(node) != why:
                say(f"{node} {why}, and no other node can take its place")
        self._named |= placement.in_spite
        return True

    def attempted(self) -> Attempt:
        """One start of all ranks, to its end."""
        options, asked, place = self._options, self._asked, self._place
        started, kills = time.time(), out_of_memory_kills()
        deadlines = Deadlines(
            unknown_seconds=options.limit_seconds,
            least_seconds=min(options.least_seconds, options.limit_seconds),
        )
        with self._starter.start(place) as attempt:
            listener = attempt.listener
            watch = Watch(
                attempt.ranks,
                listener,
                deadlines,
                asked,
                speaks=options.module == SPEAKS,
                can_replace=self._can_replace,
                say=say,
            )
            while not watch.is_over():
                if listener.run_directory is not None:
                    self._attempts.found_in(listener.run_directory)
                self._starter.prepare(listener)
            # What was on its way when the last process ended.
            listener.listen(0.0)
            found = watch.found()
        verdict = self._verdict(found, watch, memory_kills=out_of_memory_kills() - kills)
        gone = list[str]()
        if place.nodes is not None and verdict.kind not in FOR_ITS_OWN_REASON:
            gone = silent(suspects(found, place.nodes))
            verdict = with_dead_nodes(verdict, found, gone)
            if not gone and verdict.kind == "dead" and self._was_short_of_memory(verdict, listener):
                verdict = out_of_memory(verdict, found)
        heard = sorted({each.node for each in found if each.node is not None})
        return Attempt(
            started=started,
            ended=time.time(),
            keeper=KEEPER,
            job=self._job,
            nodes=heard if place.nodes is None else list(place.nodes),
            left_out={} if self._placement is None else dict(self._placement.left_out),
            gone=gone,
            overrides=list(place.overrides),
            slow_ranks=watch.slow_ranks,
            num_ranks=len(found),
            first_step=listener.first_step,
            last_step=listener.last_step,
            status=max((as_status(each.ended) for each in found), default=0),
            verdict=verdict,
            seconds=dict(listener.seconds),
            longest_seconds=dict(listener.longest_seconds),
        )

    def _verdict(self, found: list[Found], watch: Watch, *, memory_kills: int) -> Verdict:
        if self._asked.at_once:
            return Verdict(kind="interrupted", sentence="ended at once by a second signal")
        verdict = judge(
            found,
            was_asked=watch.is_asked,
            memory_kills=memory_kills,
            limit_seconds=watch.limit_seconds,
        )
        slow = watch.replaced
        if slow is None or self._asked.to_stop or verdict.kind != "stopped by a signal":
            return verdict
        rank = found[slow]
        return too_slow(slow, rank.node or "", watch.slow_ranks[slow], step=rank.step)

    def _was_short_of_memory(self, verdict: Verdict, listener: Listener) -> bool:
        """Whether the kernel has killed on a rank's node, for want of memory, since it began."""
        if verdict.node is None or verdict.rank is None:
            return False
        if not (told := listener.ranks[verdict.rank]).has_spoken:
            return False  # nobody knows how often it had before
        before = max(told.kills, self._kills.get(verdict.node, 0))
        now = memory_kills(verdict.node, inside=shlex.split(self._options.inside))
        self._kills[verdict.node] = max(now, before)
        return now > before

    def _can_replace(self, node: str) -> bool:
        """Whether a slow node is to be replaced, and can be."""
        allocation = self._allocation
        return (
            allocation is not None
            and self._settings.keep.leave_out_slow
            and has_better(node, self._attempts.all, allocation)
        )


def as_status(ended: int | None) -> int:
    """An exit status as shells tell it; of a rank that had to be killed, 137."""
    if ended is None:
        return 137
    return 128 - ended if ended < 0 else ended


def say(text: str) -> None:
    """Tell whoever watches."""
    sys.stderr.write(f"keeper: {text}\n")
    sys.stderr.flush()
