"""Which faults a run meets: drawn by a seed, each kind as often as every other."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Kind(StrEnum):
    """What is done to a run."""

    RANK_DEAD = "rank dead"
    """SIGKILL."""
    RANK_STOPPED = "rank stopped"
    """SIGSTOP: it lives, and does nothing."""
    NODE_DEAD = "node dead"
    """As in a power cut. It comes back after a while."""
    NOT_FINITE = "not finite"
    """A rank computes NaN once, which it does not when the step is repeated: hardware."""
    STORE_FROZEN = "store frozen"
    """It answers nobody for a while."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A fault to be made.

    Attributes:
        kind: of it.
        choice: from 0 to below 1, by which one of those is chosen that it can hit.
    """

    kind: Kind
    choice: float


def drawn(seed: int) -> Iterator[Draw]:
    """Faults without end: each kind once a round, in an order of the round's own.

    So of five faults or more no kind makes more than a third.

    Args:
        seed: the same one draws the same faults.
    """
    random = Random(seed)
    while True:
        for kind in random.sample(list(Kind), len(Kind)):
            yield Draw(kind=kind, choice=random.random())
