"""What a metric is: what counts of each row, and what rows make together."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from typing_extensions import override

Floats = npt.NDArray[np.float64]


class Metric(ABC):
    """A number for some rows, made of what is counted in each."""

    @abstractmethod
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        """What counts of one row.

        Args:
            answer: what the model said.
            right: the answers that are right, at least one.
        """

    def counts(self, answers: Sequence[str], right: Sequence[Sequence[str]]) -> list[list[float]]:
        """What counts of each row among all that are asked."""
        return [self.count(*row) for row in zip(answers, right, strict=True)]

    @abstractmethod
    def together(self, counts: Floats) -> Floats:
        """[...] at most 1, of [..., k] counts of rows that are added up, with their number first.

        CIDEr is at most 10.

        Args:
            counts: sums over rows of what `count` gives, behind the number of rows.
        """


class Mean(Metric):
    """The mean of a value a row, from 0 to 1."""

    @override
    def together(self, counts: Floats) -> Floats:
        return counts[..., 1] / counts[..., 0]


class Best(Mean):
    """The mean of a value a row, the best over the answers that are right."""

    @abstractmethod
    def value(self, answer: str, right: str) -> float:
        """From 0 to 1."""

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        return [max(self.value(answer, each) for each in right)]
