"""Sums of loss terms, by kind of target, over microbatches and ranks."""

import math
from dataclasses import dataclass
from typing import Self

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
        self.loss = self.first_loss = 0.0
        self.count = self.first_count = 0

    def add(self, batch: Batch, loss: Loss) -> None:
        """Add one microbatch."""
        first = batch.first_of_span[: batch.num_scored]
        terms = loss.terms[: batch.num_scored].double()
        self.loss += float(terms.sum())
        self.first_loss += float(terms[first].sum())
        self.count += batch.num_scored
        self.first_count += int(first.sum())

    def over_ranks(self) -> Self:
        """The tally of all ranks together; every rank must call it."""
        sums = total(self.loss, self.first_loss, self.count, self.first_count)
        everywhere = type(self)()
        everywhere.loss, everywhere.first_loss = sums[0], sums[1]
        everywhere.count, everywhere.first_count = int(sums[2]), int(sums[3])
        return everywhere

    def averages(self) -> Averages:
        """Means; NaN where nothing was scored."""
        other_count = self.count - self.first_count
        other_loss = self.loss - self.first_loss
        return Averages(
            loss=self.loss / self.count if self.count else math.nan,
            first_of_span=self.first_loss / self.first_count if self.first_count else None,
            other=other_loss / other_count if other_count else None,
            scored_tokens=self.count,
        )
