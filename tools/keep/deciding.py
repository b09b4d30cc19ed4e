"""What to do after an attempt: one table, a function of the attempts so far and of nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tools.keep.attempt import Attempt
from tools.keep.placing import Allocation, Placement, placed
from train.exit_status import ExitStatus

WITHOUT_PROGRESS: Final = 3
"""Attempts that reach no new step, after which a run is given up."""

_TRIED_AGAIN: Final = "StorageError"
"""Of the errors that a user can mend, the one that often mends itself: a store that was away."""

_IN_ORDER: Final = ("complete", "stopped by a signal", "interrupted")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do.

    Attributes:
        action: start the ranks again, give the job back to be started later, or end.
        status: to end with.
        reason: in words.
        pause_seconds: before the ranks are started again.
        placement: where they are started again; None without a job's nodes to choose from.
    """

    action: Literal["again", "requeue", "end"]
    status: ExitStatus = ExitStatus.COMPLETE
    reason: str
    pause_seconds: float = 0.0
    placement: Placement | None = None


def decide(
    attempts: Sequence[Attempt], *, can_requeue: bool, allocation: Allocation | None = None
) -> Decision:
    """What to do after the last of these attempts.

    Args:
        attempts: of the run, oldest first.
        can_requeue: whether there is a job that can be given back.
        allocation: nodes to choose from; None without.
    """
    last = attempts[-1]
    verdict = last.verdict
    match verdict.kind:
        case "complete":
            return Decision(action="end", reason="all steps are done")
        case "stopped by a signal":
            return Decision(
                action="requeue" if can_requeue else "end",
                status=ExitStatus.SAVED,
                reason="it was asked to stop, and has saved",
            )
        case "interrupted":
            return Decision(
                action="end", status=ExitStatus.INTERRUPTED, reason="a person has ended it"
            )
        case "not finite":
            return Decision(
                action="end",
                status=ExitStatus.MISTAKE,
                reason="it has computed that twice itself, with the same result",
            )
        case "user error" if _TRIED_AGAIN not in verdict.classes or last.first_step is None:
            return Decision(
                action="end",
                status=ExitStatus.MISTAKE,
                reason="it would fail again until something is changed",
            )
        case _:
            pass
    if same := _same_error(attempts):
        return Decision(action="end", status=ExitStatus.GIVEN_UP, reason=same)
    vain = _without_progress(attempts)
    if vain >= WITHOUT_PROGRESS:
        reached = "never came to a step" if last.last_step is None else "reached no new step"
        return Decision(
            action="end",
            status=ExitStatus.GIVEN_UP,
            reason=f"the last {vain} attempts {reached}",
        )
    placement = None if allocation is None else placed(attempts, allocation)
    if allocation is not None and placement is None:
        return Decision(
            action="requeue" if can_requeue else "end",
            status=ExitStatus.FAULT,
            reason="too few of the job's nodes answer",
        )
    return Decision(
        action="again",
        reason=_why_again(last, placement),
        # None at first: most faults are gone with the process that had them.
        pause_seconds=float(vain),
        placement=placement,
    )


def _why_again(last: Attempt, placement: Placement | None) -> str:
    """Why it is worth it, and where."""
    if placement is None or placement.nodes == tuple(last.nodes):
        return "most such faults do not come twice"
    on = f"on {', '.join(placement.nodes)}"
    without = [f"{node} {why}" for node, why in placement.left_out.items() if node in last.nodes]
    return f"{' and '.join(without)}: {on}" if without else on


def _same_error(attempts: Sequence[Attempt]) -> str | None:
    """That the last two attempts have ended with one error at one step; None if they have not."""
    if len(attempts) < 2 or attempts[-2].keeper != attempts[-1].keeper:
        return None
    before, last = attempts[-2].verdict, attempts[-1].verdict
    if last.error is None or (last.error, last.step) != (before.error, before.step):
        return None
    if _TRIED_AGAIN in last.classes:
        return None
    at = "before the first step" if last.step is None else f"at step {last.step}"
    return f"the same error came twice {at}: {last.error}"


def _without_progress(attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts of this keeper came to no new step, and were not told to."""
    highest: int = -1
    vain, keeper = 0, None
    for attempt in attempts:
        if attempt.keeper != keeper:
            # A person, or Slurm, has begun anew.
            vain, keeper = 0, attempt.keeper
        reached = -1 if attempt.last_step is None else attempt.last_step
        if reached > highest:
            vain = 0
        elif attempt.verdict.kind not in _IN_ORDER:
            vain += 1
        highest = max(highest, reached)
    return vain
