"""What chaos has found, for people and for programs."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tools.chaos.account import split
from tools.chaos.disturbing import Disturbed
from tools.chaos.drawing import Kind
from tools.chaos.scoring import Fault, score
from tools.chaos.timeline import made_again
from tools.keep.attempt import Attempt

LLAMA_HOURS: Final = 3.0
"""Between two of the 419 unexpected interruptions that Llama 3 had in 54 days.
Source: The Llama 3 Herd of Models §3.3.4."""
ASKED: Final[Mapping[bool, Mapping[str, float]]] = {
    True: {Kind.RANK_DEAD: 20.0, "effective_training_time": 0.55},
    False: {Kind.RANK_DEAD: 30.0, "effective_training_time": 0.40},
}
"""By whether ranks stand by: seconds at most to the next new step, and the least share."""
LEAST_RIGHT: Final = 0.95
"""Of the verdicts; of those that are wrong none may be sure."""


@dataclass(frozen=True, kw_only=True)
class Equal:
    """Where the run differs from one that nothing disturbed; None where it does not.

    Attributes:
        losses: of all steps.
        weights: and moments, of the last checkpoint.
        ledger: faults that `tools.ledger check` finds.
    """

    losses: str | None
    weights: str | None
    ledger: list[str]


def document(
    done: Disturbed, attempts: Sequence[Attempt], equal: Equal, **settings: object
) -> dict[str, Any]:
    """All that was found.

    Args:
        done: what was made of faults.
        attempts: of the run, the last one being that which the end of the minutes has stopped.
        equal: what the run came to.
        settings: of the command.
    """
    steps = done.timeline.steps
    wall = done.ended - done.submitted
    went = split(
        steps,
        attempts,
        job_starts=done.job_starts,
        submitted=done.submitted,
        ended=done.ended,
    )
    rows = [
        _row(done, fault, attempts[fault.attempts : after])
        for fault, after in zip(
            done.faults,
            [*(each.attempts for each in done.faults[1:]), len(attempts) - 1],
            strict=True,
        )
    ]
    lost = (wall - went.new_steps) / max(1, len(rows))
    return {
        **settings,
        "faults": Counter(row["kind"] for row in rows),
        "steps": max(each.step for each in steps),
        "steps_lost": sum(row["steps_lost"] for row in rows),
        "seconds_to_next_new_step": {
            kind: statistics.median(
                each["seconds_to_next_new_step"] for each in rows if each["kind"] == kind
            )
            for kind in Kind
            if any(each["kind"] == kind for each in rows)
        },
        "effective_training_time": went.new_steps / wall,
        "wall_seconds": wall,
        "split_seconds": asdict(went),
        "split_over_wall": went.total / wall,
        "verdicts_right": sum(row["verdict_right"] for row in rows),
        "verdicts_wrong_but_sure": sum(row["wrong_but_sure"] for row in rows),
        "losses_differ": equal.losses,
        "weights_differ": equal.weights,
        "ledger_faults": equal.ledger,
        "one_fault_in_three_hours": {
            "seconds_lost_a_fault": lost,
            "effective_training_time": 1 - lost / (3600 * LLAMA_HOURS),
        },
        "each": rows,
    }


def _row(done: Disturbed, fault: Fault, ended: Sequence[Attempt]) -> dict[str, Any]:
    step, said = done.recovered(fault), score(fault, ended)
    assert step is not None, "the next fault waits for it"
    return {
        "kind": fault.kind,
        "rank": fault.rank,
        "node": fault.node,
        "made": round(fault.made - done.submitted, 1),
        "seconds_to_next_new_step": round(step.arrived - fault.made, 2),
        "steps_lost": made_again(done.timeline.steps, since=fault.made, until=step.arrived),
        "verdict_right": said.is_right,
        "wrong_but_sure": said.wrong_but_sure,
        "verdicts": said.sentences,
    }


def faults_of(found: Mapping[str, Any]) -> list[str]:
    """What is not as it has to be, whatever the machine: one sentence each."""
    rows, right = found["each"], found["verdicts_right"]
    said = [
        f"{row['kind']} of rank {row['rank']} on {row['node']}: {row['verdicts'] or 'no verdict'}"
        for row in rows
        if not row["verdict_right"]
    ]
    return [
        *(said if right < LEAST_RIGHT * len(rows) or found["verdicts_wrong_but_sure"] else []),
        *([f"losses: {found['losses_differ']}"] if found["losses_differ"] else []),
        *([f"weights: {found['weights_differ']}"] if found["weights_differ"] else []),
        *(f"ledger: {each}" for each in found["ledger_faults"]),
    ]


def show(found: Mapping[str, Any], *, say: Callable[[str], None]) -> None:
    """A few lines for people, with what is asked where it is."""
    asked = ASKED[found["is_warm"]]
    faults: Mapping[str, int] = found["faults"]
    for kind, seconds in found["seconds_to_next_new_step"].items():
        bar = f" (asked: {asked[kind]:.0f} at most)" if kind in asked else ""
        say(f"{faults[kind]} x {kind}: {seconds:.1f} s to the next new step{bar}")
    wall, share = found["wall_seconds"], found["effective_training_time"]
    bar = asked["effective_training_time"]
    say(f"effective training time {share:.1%} of {wall:.0f} s (asked: {bar:.0%} at least)")
    for name, seconds in found["split_seconds"].items():
        say(f"  {name.replace('_', ' ')}: {seconds:.1f} s, {seconds / wall:.1%}")
    say(f"  accounted for: {found['split_over_wall']:.2%}")
    right, wrong = found["verdicts_right"], found["verdicts_wrong_but_sure"]
    say(f"verdicts: {right} of {len(found['each'])} right, {wrong} wrong but sure")
    rare = found["one_fault_in_three_hours"]
    say(
        f"one such fault in three hours, as Llama 3 had, would cost "
        f"{1 - rare['effective_training_time']:.2%} at these {rare['seconds_lost_a_fault']:.0f} s"
    )
