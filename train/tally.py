"""Sums of loss terms, by kind of target, over microbatches and ranks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.batch import Batch
from model.loss import Loss
from parallel.launch import total


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Mean losses in nats a scored token.

    Attributes:
        loss: over all scored tokens.
        first_of_span: over first tokens of spans; None if there were none.
        other: over the other tokens; None if there were none.
        scored_tokens: how many were scored.
    """

    loss: float
    first_of_span: float | None
    other: float | None
    scored_tokens: int


class Tally:
    """Adds up microbatches on one rank, then over all ranks."""

    def __init__(self):
        self._parts: list[Tensor] = []

    def add(self, batch: Batch, loss: Loss) -> None:
        """Add one microbatch; the sums stay on the device, nothing waits for them."""
        first = batch.first_of_span[: batch.num_scored]
        terms = loss.terms[: batch.num_scored].double()
        count = terms.new_tensor(batch.num_scored)
        self._parts.append(torch.stack([terms.sum(), (terms * first).sum(), count, first.sum()]))

    @classmethod
    def of_all(cls, tallies: Iterable["Tally"]) -> "Tally":
        """One that has seen what all of these have."""
        whole = cls()
        for tally in tallies:
            whole._parts += tally._parts
        return whole

    def over_ranks(self) -> Averages:
        """Means over all ranks, NaN where nothing was scored; every rank must call it."""
        sums = torch.stack(self._parts).sum(dim=0).tolist() if self._parts else [0.0] * 4
        loss, first_loss, count, first_count = total(*sums)
        other_count, other_loss = count - first_count, loss - first_loss
        return Averages(
            loss=loss / count if count else math.nan,
            first_of_span=first_loss / first_count if first_count else None,
            other=other_loss / other_count if other_count else None,
            scored_tokens=int(count),
        )
