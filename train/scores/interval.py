"""How sure a score is: standard errors, differences of pairs, and what could have been seen.

Rows that share a source, such as questions about one passage, are no independent observations.
They are taken together: what varies is the sum of a group. Without groups each row is one.

Source: Miller, "Adding Error Bars to Evals" (2411.00640), §2 (clusters), §4 (pairs), §5 (power).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import special

from train.scores.measure import Floats, Mean, Metric

CONFIDENCE: Final = 0.95
POWER: Final = 0.8
"""Share of the experiments that would see a difference of the size that is called visible."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number from a sample of rows.

    Attributes:
        value: of these rows.
        standard_error: how far other rows would have moved it, typically; NaN for a single group.
        rows: how many.
        groups: that are independent of each other.
        is_share: whether it is a mean of values from 0 to 1.
    """

    value: float
    standard_error: float
    rows: int
    groups: int
    is_share: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """What holds the true value in 95 of 100 samples, by Student's t over groups.

        That nothing varied here does not say that nothing varies. Where all groups say 0, or all 1,
        it is Clopper's and Pearson's. None where it is unknown: all groups say another same thing,
        as where a difference is equal in all pairs, or there is one group.
        """
        if self.is_share and self.standard_error == 0 and self.value in (0, 1):
            far = 1 - ((1 - CONFIDENCE) / 2) ** (1 / self.groups)
            return (0.0, far) if self.value == 0 else (1 - far, 1.0)
        if not self.standard_error > 0:
            return None
        reach = _quantile(CONFIDENCE, self.groups) * self.standard_error
        return self.value - reach, self.value + reach

    @property
    def visible(self) -> float:
        """The smallest true difference that 80 of 100 samples of this size would show.

        NaN where all groups say the same.
        """
        if self.standard_error == 0:
            return math.nan
        quantile = _quantile(CONFIDENCE, self.groups)
        return (quantile + float(special.ndtri(POWER))) * self.standard_error


def estimate(metric: Metric, counts: Floats, groups: Sequence[str] | None = None) -> Estimate:
    """The score of some rows.

    Args:
        metric: what is counted.
        counts: [n, k] of each row, as the metric gives them.
        groups: which rows belong together; None where none do.
    """
    sums = _sums(counts, groups)
    influences = _influences(metric, sums)
    value = float(metric.together(sums.sum(axis=0)))
    is_share = isinstance(metric, Mean)
    return _estimate(value, influences, rows=len(counts), is_share=is_share)


def difference(
    metric: Metric, here: Floats, there: Floats, groups: Sequence[str] | None = None
) -> Estimate:
    """By how much the score of some rows exceeds that of another run on the same rows.

    Args:
        metric: what is counted.
        here: [n, k] of each row.
        there: the same of the other run, row by row.
        groups: as in `estimate`.
    """
    assert here.shape == there.shape, "pairs of the same rows"
    ours, theirs = _sums(here, groups), _sums(there, groups)
    value = float(metric.together(ours.sum(axis=0)) - metric.together(theirs.sum(axis=0)))
    influences = _influences(metric, ours) - _influences(metric, theirs)
    return _estimate(value, influences, rows=len(here))


def unpaired(one: Estimate) -> float:
    """The smallest difference to another model on other rows of the kind that would be seen."""
    return math.sqrt(2) * one.visible


def _sums(counts: Floats, groups: Sequence[str] | None) -> Floats:
    """[g, 1 + k] number of rows and sums of their counts, of each group."""
    rows = np.concatenate([np.ones((len(counts), 1)), counts], axis=1)
    if groups is None:
        return rows
    _, places = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((places.max(initial=-1) + 1, rows.shape[1]))
    np.add.at(sums, places, rows)
    return sums


def _influences(metric: Metric, sums: Floats) -> Floats:
    """[g] how far each group moves the score, times the number of groups: jackknife values.

    For a mean over groups of one size these are the groups' means less the mean of all.
    """
    total = sums.sum(axis=0)
    count = len(sums)
    if count < 2:
        return np.full(count, np.nan)
    without = metric.together(total - sums)
    return (count - 1) * (metric.together(total) - without)


def _estimate(value: float, influences: Floats, *, rows: int, is_share: bool = False) -> Estimate:
    count = len(influences)
    spread = influences - influences.mean() if count else influences
    error = math.sqrt(float((spread**2).sum()) / (count * (count - 1))) if count > 1 else math.nan
    return Estimate(value=value, standard_error=error, rows=rows, groups=count, is_share=is_share)


def _quantile(confidence: float, groups: int) -> float:
    if groups < 2:
        return math.inf
    return float(special.stdtrit(groups - 1, 0.5 + confidence / 2))
