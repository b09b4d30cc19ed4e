"""A step that is not finite is computed once more: by another result the hardware errs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.batch import Batch
from parallel.agreement import gathered
from parallel.host import node_name
from parallel.zero.engine import ZeroEngine
from train.step import Gradients, accumulate


@dataclass(frozen=True, kw_only=True)
class OneRank:
    """What one rank has computed, twice from the same state.

    Attributes:
        rank: its number.
        copy: of the model that it holds a part of: its data rank.
        node: where it runs.
        first: its own sums of losses, the first time; of a rank without the head, zeros.
        second: likewise, the second time.
    """

    rank: int
    copy: int
    node: str
    first: list[float]
    second: list[float]

    def differs(self, *, by_finiteness: bool) -> bool:
        """Whether the results do; by finiteness alone, or by any bit."""
        if by_finiteness:
            return [*map(math.isfinite, self.first)] != [*map(math.isfinite, self.second)]
        return repr(self.first) != repr(self.second)


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """What came of a step that was not finite, when it was computed once more.

    Attributes:
        is_finite: whether loss and gradient are, the second time.
        ranks: all of them.
    """

    is_finite: bool
    ranks: list[OneRank]

    @property
    def is_same(self) -> bool:
        """Whether the same is not finite: data or model are to blame."""
        return not self.is_finite and not any(r.differs(by_finiteness=True) for r in self.ranks)

    @property
    def suspects(self) -> list[OneRank]:
        """Ranks of the one model copy that has computed otherwise; empty where none can be told.

        Parts of a copy hand on to each other whatever they compute, so that all are suspects.
        """
        for by_finiteness in (True, False):
            copies = {r.copy for r in self.ranks if r.differs(by_finiteness=by_finiteness)}
            if copies:
                is_one = len(copies) == 1
                return [r for r in self.ranks if r.copy in copies] if is_one else []
        return [r for r in self.ranks if len({r.copy for r in self.ranks}) == 1]


def compute_again(
    engine: ZeroEngine,
    batches: Sequence[Batch],
    first: Gradients,
    *,
    under_way: Gradients | None = None,
) -> Repetition:
    """Compute a step once more that has changed nothing; nor does this. Every rank must call it.

    Torch's generators must be as they were the first time.

    Args:
        engine: in the state of the first time.
        batches: this rank's microbatches of the step.
        first: what they added up to, the first time.
        under_way: of a later step, if it has been accumulated since; it is lost.

    Raises:
        UserError: as `accumulate`.
    """
    assert first.sums is not None, "what has no scored token cannot go wrong"
    forget(engine, under_way)
    second = accumulate(engine, batches)
    assert second.sums is not None, "the same batches"
    *told, _ = engine.step(torch.cat([second.sums, _never(second.sums)])).told.read()
    mine = OneRank(
        rank=engine.mesh.world.rank,
        copy=engine.mesh.data_rank,
        node=node_name(),
        first=first.sums.tolist(),
        second=second.sums.tolist(),
    )
    return Repetition(is_finite=all(map(math.isfinite, told)), ranks=gathered(mine))


def forget(engine: ZeroEngine, gradients: Gradients | None) -> None:
    """Drop what was accumulated and not stepped by, if anything was; every rank must call it."""
    if gradients is not None and gradients.sums is not None:
        engine.step(_never(gradients.sums))


def _never(like: Tensor) -> Tensor:
    """[1] a sum by which an update forgets the gradients, and changes nothing."""
    return torch.full((1,), math.nan, dtype=torch.float64, device=like.device)
