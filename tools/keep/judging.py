"""What went wrong: rules over what the ranks told and where they were found, nothing learned."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tools.keep.attempt import Kind, Verdict
from tools.keep.looking import UNSEEN, Frame, Look
from tools.keep.straggling import WINDOW_STEPS, WINDOWS
from train.exit_status import ExitStatus
from train.watch.heartbeat import Section

_LOST_A_PEER: Final = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
    "NCCL communicator was aborted",
    "unhandled system error",
    "another rank failed",
)
"""In the words of back ends: it is another rank that this one waited for."""

_ABORTED: Final = (-signal.SIGABRT, 128 + signal.SIGABRT)
_COLLECTIVE_FILES: Final = ("torch/distributed/", "deepspeed/comm/")
_ORDER: Final = [each.value for each in Section]


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that is known of one rank when an attempt ends.

    Attributes:
        rank: its number.
        node: where it runs; None if nobody has said it.
        has_spoken: whether it has said anything itself, and not only the shell that it was first.
        section: in which it was.
        step: likewise; None before the first.
        seconds: that it has been in there.
        ended: exit status, negative for a signal; None while it runs, or where nobody knows.
        is_status_shared: whether that is the highest of all ranks, and perhaps not its own.
        is_gone: whether its connection is closed, or its process has ended.
        error: classes of what it raised, from its own class up; empty if it said nothing.
        message: of that.
        order: of its end among all ends, 0 for one that has not ended.
        look: what it is found at.
    """

    rank: int
    node: str | None
    section: str
    step: int | None
    seconds: float
    ended: int | None = None
    is_status_shared: bool = False
    is_gone: bool = False
    error: tuple[str, ...] = ()
    message: str = ""
    order: int = 0
    look: Look = UNSEEN
    has_spoken: bool = True

    @property
    def place(self) -> tuple[int, int]:
        """How far it has come: its step, and the section within."""
        return (-1 if self.step is None else self.step, _ORDER.index(self.section))

    @property
    def lost_a_peer(self) -> bool:
        """Whether its error is that another rank has gone."""
        return (
            bool(self.error)
            and "UserError" not in self.error
            and any(words in self.message for words in _LOST_A_PEER)
        )

    @property
    def in_collective(self) -> bool:
        """Whether it waits for other ranks."""
        return any(part in frame.file for frame in self.look.frames for part in _COLLECTIVE_FILES)

    @property
    def where(self) -> Frame | None:
        """The innermost call of ours."""
        rooms = ("/train/", "/parallel/", "/model/", "/tools/")
        ours = (
            frame
            for frame in self.look.frames
            if any(room in frame.file for room in rooms) and "site-packages" not in frame.file
        )
        return next(ours, None)


def perhaps_gave_up(rank: Found) -> bool:
    """Whether one that has gone may have waited too long for one that has not."""
    if rank.error:
        return rank.lost_a_peer
    return rank.is_status_shared or rank.ended in _ABORTED


def straggles(rank: int, node: str, ratio: float) -> str:
    """That a rank is slow, in words."""
    return (
        f"slow: rank {rank} on {node} computes {ratio:.2f} times as long as the median of its "
        f"stage, for {WINDOWS} windows of {WINDOW_STEPS} steps"
    )


def too_slow(rank: int, node: str, ratio: float, *, step: int | None) -> Verdict:
    """That an attempt was ended for the sake of a quicker node."""
    sentence = straggles(rank, node, ratio)
    return Verdict(kind="slow", rank=rank, node=node, step=step, sentence=sentence)


def suspects(ranks: Sequence[Found], nodes: Sequence[str]) -> list[str]:
    """Nodes that may be dead: none of its ranks lives, or has said why it ended.

    Args:
        ranks: all of them.
        nodes: where they are, as many on each.
    """
    each_has = len(ranks) // len(nodes)
    speaks = {
        each.node or nodes[each.rank // each_has]
        for each in ranks
        if each.error or not each.is_status_shared or (each.node is not None and not each.is_gone)
    }
    return [node for node in nodes if node not in speaks]


def out_of_memory(verdict: Verdict, ranks: Sequence[Found]) -> Verdict:
    """The same, once it is known that the kernel has killed for want of memory on its node.

    Args:
        verdict: that a rank has gone without a word.
        ranks: all of them.
    """
    rank = next(each for each in ranks if each.rank == verdict.rank)
    what = "has gone without a word, and the kernel has killed there for want of memory"
    return _verdict("out of memory", rank, what, is_sure=verdict.is_sure)


def with_dead_nodes(verdict: Verdict, ranks: Sequence[Found], gone: Sequence[str]) -> Verdict:
    """The same, once it is known which nodes do not answer any more.

    Args:
        verdict: of what the ranks told.
        ranks: all of them.
        gone: nodes that do not answer.
    """
    theirs = [each for each in ranks if each.node in gone]
    if not theirs:
        return verdict
    first = min(theirs, key=lambda each: (each.order or len(ranks) + 1, each.rank))
    return _verdict("dead", first, "has gone with its node, which does not answer")


def judge(
    ranks: Sequence[Found], *, was_asked: bool, memory_kills: int = 0, limit_seconds: float = 0.0
) -> Verdict:
    """Why an attempt has ended, or does not go on.

    Args:
        ranks: all of them.
        was_asked: whether the keeper had told the ranks to stop.
        memory_kills: processes that the kernel has killed here for want of memory meanwhile.
        limit_seconds: which the section of some rank has passed; 0 if none has.
    """
    gone = sorted((each for each in ranks if each.is_gone), key=lambda each: each.order)
    if len(gone) == len(ranks):
        statuses = {each.ended for each in ranks}
        if statuses == {ExitStatus.COMPLETE}:
            return Verdict(kind="complete", sentence="complete")
        if statuses <= {ExitStatus.COMPLETE, ExitStatus.SAVED}:
            return Verdict(kind="stopped by a signal", sentence="stopped by a signal, all saved")
        if ExitStatus.INTERRUPTED in statuses and was_asked:
            return Verdict(kind="interrupted", sentence="ended at once by a second signal")
    if gone:
        living = [each for each in ranks if not each.is_gone]
        if all(map(perhaps_gave_up, gone)) and (held_up := _who_holds_up(living, gone)):
            return held_up
        return _of_the_dead(gone, was_asked=was_asked, memory_kills=memory_kills)
    return _of_the_silent(ranks, limit_seconds=limit_seconds)


def _of_the_dead(gone: Sequence[Found], *, was_asked: bool, memory_kills: int) -> Verdict:
    """Who went first, and was not dragged along by another."""
    first = min(gone, key=lambda each: (_is_dragged_along(each), each.order))
    if first.lost_a_peer:
        return _verdict(
            "lost a peer", first, f"has lost another rank: {first.message}", is_sure=False
        )
    if first.error:
        kind: Kind = "fault"
        if "MemoryExceededError" in first.error or "OutOfMemoryError" in first.error:
            kind = "out of memory"
        elif "DivergedError" in first.error:
            kind = "not finite"
        elif "UserError" in first.error:
            kind = "user error"
        elif "HardwareError" in first.error:
            # What it says of others is worth more than that it ended first.
            is_it = first.error[0] == "HardwareError"
            return _verdict("hardware", first, first.message, is_sure=is_it, blames=is_it)
        return _verdict(kind, first, f"raised {first.error[0]}: {first.message}")
    status = first.ended
    if first.is_status_shared and first.has_spoken:
        status = None  # its connection has ended without a word
    elif first.is_status_shared and status not in (None, ExitStatus.MISTAKE, ExitStatus.SAVED):
        what = f"or another, ended with status {status} without a word"
        return _verdict("dead", first, what, is_sure=False, blames=False)
    if status == ExitStatus.MISTAKE:
        return _verdict("user error", first, "refused to start, as it said itself")
    if status in _ABORTED:
        what = "aborted, perhaps because it has waited too long for another"
        return _verdict("dead", first, what, is_sure=False)
    if status is not None and status < 0:
        if memory_kills and status == -9:
            return _verdict("out of memory", first, "was killed by the kernel, for want of memory")
        return _verdict("dead", first, f"was killed by signal {-status}")
    if status is None or status > 128:
        return _verdict("dead", first, "has gone without a word")
    if status == ExitStatus.SAVED and was_asked:
        return _verdict("stopped by a signal", first, "was asked to stop")
    return _verdict("dead", first, f"ended with status {status} without a word")


def _is_dragged_along(rank: Found) -> bool:
    """Whether another's end is the reason of this one's."""
    in_order = (ExitStatus.COMPLETE, ExitStatus.SAVED, ExitStatus.MISTAKE)
    return rank.lost_a_peer or (not rank.error and rank.ended in in_order)


def _who_holds_up(living: Sequence[Found], gone: Sequence[Found]) -> Verdict | None:
    """One that lives, for which all that have gone may have waited too long; None if none is seen.

    Of those that ended without a word one may be to blame itself: then only a rank that is stopped
    is surely another fault, and the first.
    """
    if not any(each.look.state for each in living):
        return None
    verdict = _of_the_silent(living, limit_seconds=0.0)
    is_clear = verdict.kind == "stopped" or all(each.lost_a_peer for each in gone)
    return verdict if verdict.rank is not None and is_clear else None


def _of_the_silent(ranks: Sequence[Found], *, limit_seconds: float) -> Verdict:
    """Who holds up the others, when all live and nothing moves."""
    stopped = [each for each in ranks if each.look.state == "stopped"]
    over = f"and more than {limit_seconds:.0f} s have passed"
    if limit_seconds == 0:
        over = "and others have given up waiting"
    if stopped:
        return _verdict("stopped", stopped[0], "is stopped (SIGSTOP, or a debugger)")
    ended = [each for each in ranks if each.look.state in ("zombie", "dead")]
    if ended:
        return _verdict("dead", ended[0], "has ended")
    known = [each for each in ranks if each.look.frames]
    outside = [each for each in known if not each.in_collective]
    alone = outside[0] if len(outside) == 1 else None
    is_clear = alone is not None and len(known) == len(ranks)
    if alone is not None:
        at = f", at {alone.where}" if alone.where else ""
        match alone.section:
            case Section.READ:
                return _verdict("stuck in reading", alone, f"reads{at}, {over}", is_sure=is_clear)
            case Section.SAVE:
                return _verdict("stuck in saving", alone, f"saves{at}, {over}", is_sure=is_clear)
            case _ if alone.look.state == "running":
                return _verdict("slow", alone, f"computes{at}, others wait, {over}", is_sure=False)
            case _:
                return _verdict("stuck", alone, f"hangs{at}, {over}", is_sure=is_clear)
    if outside:
        reading = [each for each in outside if each.section == Section.READ]
        if len(reading) == len(outside):
            return _verdict(
                "stuck in reading",
                reading[0],
                f"and {len(reading) - 1} others read, {over}",
                is_sure=False,
            )
    behind = min(ranks, key=lambda each: each.place)
    if known and not outside and behind.place < max(each.place for each in ranks):
        return _verdict(
            "collective the others did not enter",
            behind,
            f"waits in {behind.where} for ranks that are elsewhere, {over}",
            is_sure=False,
        )
    slowest = max(ranks, key=lambda each: each.seconds)
    return _verdict(
        "unknown",
        slowest,
        f"has not moved for {slowest.seconds:.0f} s",
        is_sure=False,
        blames=False,
    )


def _verdict(
    kind: Kind, rank: Found, what: str, *, is_sure: bool = True, blames: bool = True
) -> Verdict:
    at = "before the first step" if rank.step is None else f"in {rank.section} of step {rank.step}"
    who = f"rank {rank.rank}" + ("" if rank.node is None else f" on {rank.node}")
    sentence = f"{kind}: {who}, {at}, {what}"
    return Verdict(
        kind=kind,
        rank=rank.rank if blames else None,
        node=rank.node if blames else None,
        section=rank.section,
        step=rank.step,
        is_sure=is_sure,
        sentence=sentence if is_sure else f"{sentence} (not sure)",
        error=f"{rank.error[0]}: {rank.message}" if rank.error else None,
        classes=list(rank.error),
    )
