"""Which nodes of a job the next ranks run on: a function of the attempts so far, nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tools.keep.attempt import Attempt
from tools.keep.fitness import Doubt

_NONE: Final = Doubt(1.0, "")
_WAS_SLOW: Final = Doubt(0.5, "was slow")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a job has, and what may be done with it.

    Attributes:
        nodes: names, in Slurm's order.
        num_wanted: nodes that ranks run on; the others are spare.
        ranks_per_node: ranks on each.
        may_shrink: whether fewer nodes will do.
        impossible: numbers of nodes for which the run has no layout, as far as that is known.
        tried: by name, what the try-out found wrong with nodes.
        keeper: who keeps the run now: what nodes did under others is past.
    """

    nodes: tuple[str, ...]
    num_wanted: int
    ranks_per_node: int
    may_shrink: bool = False
    impossible: frozenset[int] = frozenset()
    tried: Mapping[str, Doubt] = field(default_factory=dict)
    keeper: str = ""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where ranks run.

    Attributes:
        nodes: names, in Slurm's order.
        left_out: by name, why no ranks run on a node.
        in_spite: by name, what is wrong with nodes that ranks run on, for want of others.
    """

    nodes: tuple[str, ...]
    left_out: Mapping[str, str]
    in_spite: Mapping[str, str]


def placed(attempts: Sequence[Attempt], allocation: Allocation) -> Placement | None:
    """Where the next ranks run; None if there are not nodes enough.

    Ranks never run on a node that does not answer. A doubtful one is left out where another takes
    its place; and one that computes wrongly also where fewer will do.

    Args:
        attempts: of the run, oldest first.
        allocation: of the job.
    """
    gone = {
        node: "does not answer"
        for attempt in attempts
        if attempt.keeper == allocation.keeper
        for node in attempt.gone
    }
    wrong, slow = _wrong(attempts), _slow(attempts, allocation)
    answering = [node for node in allocation.nodes if node not in gone]
    right = [node for node in answering if node not in wrong]
    size = _size(len(right), allocation) or _size(len(answering), allocation)
    if size is None:
        return None
    # Sorting keeps Slurm's order among equals: the first node, the keeper's own, stays the first.
    best = sorted(answering, key=lambda node: (node in wrong, -slow.get(node, _NONE).share))[:size]
    doubts = {**{node: doubt.why for node, doubt in slow.items()}, **wrong}
    return Placement(
        nodes=tuple(node for node in allocation.nodes if node in best),
        left_out={
            node: {**doubts, **gone}.get(node, "is spare")
            for node in allocation.nodes
            if node not in best
        },
        in_spite={node: doubts[node] for node in best if node in doubts},
    )


def has_better(node: str, attempts: Sequence[Attempt], allocation: Allocation) -> bool:
    """Whether another node can take the place of one, for all that is known."""
    tried = {**allocation.tried, node: _WAS_SLOW}
    found = placed(attempts, replace(allocation, tried=tried))
    return (
        found is not None and node not in found.nodes and len(found.nodes) == allocation.num_wanted
    )


def _size(available: int, allocation: Allocation) -> int | None:
    """Most nodes that the run can have of so many; None if none will do."""
    least = 1 if allocation.may_shrink else allocation.num_wanted
    most = min(available, allocation.num_wanted)
    return next(
        (size for size in range(most, least - 1, -1) if size not in allocation.impossible), None
    )


def _wrong(attempts: Sequence[Attempt]) -> dict[str, str]:
    """Nodes that have computed one thing in two ways, under whatever keeper."""
    verdicts = [attempt.verdict for attempt in attempts if attempt.verdict.kind == "hardware"]
    return {v.node: "computed wrongly" for v in verdicts if v.is_sure and v.node is not None}


def _slow(attempts: Sequence[Attempt], allocation: Allocation) -> dict[str, Doubt]:
    """Nodes that have held up the others, or failed in the try-out."""
    verdicts = [
        attempt.verdict
        for attempt in attempts
        if attempt.keeper == allocation.keeper and attempt.verdict.kind == "slow"
    ]
    found = {v.node: _WAS_SLOW for v in verdicts if v.is_sure and v.node is not None}
    return {**found, **allocation.tried}
