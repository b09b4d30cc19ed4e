"""Records of runs that never were."""

from tools.chaos.drawing import Kind
from tools.chaos.scoring import Fault
from tools.chaos.timeline import Stepped
from tools.keep.attempt import Attempt, Verdict
from tools.keep.attempt import Kind as Said


def stepped(step: int, arrived: float, *, start: int, is_new: bool = True) -> Stepped:
    """A step of half a second."""
    return Stepped(step=step, arrived=arrived, seconds=0.5, start=start, is_new=is_new)


def attempt(
    started: float,
    ended: float,
    kind: Said = "dead",
    *,
    rank: int | None = 1,
    node: str | None = "node2",
    is_sure: bool = True,
    keeper: str = "keeper",
    saving: float = 0.0,
) -> Attempt:
    verdict = Verdict(kind=kind, rank=rank, node=node, is_sure=is_sure, sentence=f"{kind}: it is")
    return Attempt(
        started=started,
        ended=ended,
        keeper=keeper,
        num_ranks=2,
        status=1,
        verdict=verdict,
        seconds={"save": saving, "step": 1.0},
    )


def fault(kind: Kind, *, rank: int | None = 1, node: str | None = "node2") -> Fault:
    return Fault(kind=kind, rank=rank, node=node, made=0.0, start=1, attempts=0)
