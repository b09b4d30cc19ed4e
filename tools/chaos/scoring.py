"""The keeper's verdicts, held against what was done."""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.chaos.drawing import Kind
from tools.keep.attempt import Attempt, Verdict

_KINDS = {
    Kind.RANK_DEAD: "dead",
    Kind.RANK_STOPPED: "stopped",
    Kind.NODE_DEAD: "dead",
    Kind.NOT_FINITE: "hardware",
}
"""What a verdict is to say; nothing ends where a store is frozen."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that was made.

    Attributes:
        kind: of it.
        rank: that it hit; None for none.
        node: on which that rank was, or that was hit itself.
        made: when, in Unix seconds.
        start: of the run, that made steps then.
        attempts: that had ended before.
    """

    kind: Kind
    rank: int | None = None
    node: str | None = None
    made: float
    start: int
    attempts: int

    @property
    def ends_an_attempt(self) -> bool:
        """Whether ranks have to be started again."""
        return self.kind in _KINDS


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the keeper said of a fault.

    Attributes:
        is_right: whether its first verdict names kind, rank and node, and no other followed.
        wrong_but_sure: verdicts that are sure, and blame wrongly.
        sentences: of all verdicts, until the next fault.
    """

    is_right: bool
    wrong_but_sure: int
    sentences: list[str]


def score(fault: Fault, ended: Sequence[Attempt]) -> Score:
    """Hold the attempts that ended after a fault, and before the next one, against it."""
    verdicts = [attempt.verdict for attempt in ended]
    due = 1 if fault.ends_an_attempt else 0
    right = [_is_right(fault, verdict) for verdict in verdicts[:due]]
    wrong = [
        verdict
        for index, verdict in enumerate(verdicts)
        if not (index < due and right[index]) and verdict.is_sure
    ]
    return Score(
        is_right=len(verdicts) == due and all(right),
        wrong_but_sure=len(wrong),
        sentences=[verdict.sentence for verdict in verdicts],
    )


def _is_right(fault: Fault, verdict: Verdict) -> bool:
    said = (verdict.kind, verdict.rank, verdict.node)
    return said == (_KINDS[fault.kind], fault.rank, fault.node)
