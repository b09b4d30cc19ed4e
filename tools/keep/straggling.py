"""Ranks that compute longer than their like: found over windows of steps."""

import statistics
from collections import defaultdict
from typing import Final

WINDOW_STEPS: Final = 10
"""Steps whose times are added up, so that one slow step says nothing."""
WINDOWS: Final = 10
"""In so many windows, one after the other, a straggler is slow."""
FACTOR: Final = 1.2
"""And so much longer than the median it computes."""


class Stragglers:
    """What ranks have computed of each window, and who was slow in all of the last ones.

    A rank is held against those of its own stage: stages have unlike work. Of two the median is the
    faster one's.

    Attributes:
        slow: by rank, how many times as long as the median it computes, at the least.
    """

    def __init__(self) -> None:
        self.slow: dict[int, float] = {}
        self._stages: dict[int, int] = {}
        self._sums: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self._closed: dict[int, int] = {}
        self._judged: dict[int, int] = {}
        self._ratios: dict[int, list[float]] = defaultdict(list)

    def meet(self, rank: int, *, stage: int) -> None:
        """Take note of a rank of a stage."""
        self._stages[rank] = stage

    def add(self, rank: int, *, step: int, seconds: float) -> None:
        """Take note of what a rank has computed in a step, waiting for others excluded."""
        if rank not in self._stages:
            return
        window = step // WINDOW_STEPS
        self._sums[window][rank] += seconds
        if step % WINDOW_STEPS == WINDOW_STEPS - 1:
            self._closed[rank] = window
            self._judge(self._stages[rank])

    def _judge(self, stage: int) -> None:
        """Hold the ranks of a stage against each other, once all have closed a window."""
        ranks = [rank for rank, its in self._stages.items() if its == stage]
        window = min(self._closed.get(rank, -1) for rank in ranks)
        if len(ranks) < 2 or window <= self._judged.get(stage, -1):
            return
        self._judged[stage] = window
        sums = {rank: self._sums[window].pop(rank, 0.0) for rank in ranks}
        for earlier in [each for each in self._sums if each < min(self._judged.values())]:
            del self._sums[earlier]
        median = statistics.median_low(sums.values())
        for rank in ranks:
            ratio = sums[rank] / median if median > 0 else 1.0
            self._ratios[rank] = [*self._ratios[rank], ratio][-WINDOWS:]
            ratios = self._ratios[rank]
            if len(ratios) == WINDOWS and min(ratios) > FACTOR:
                self.slow[rank] = min(ratios)
            else:
                self.slow.pop(rank, None)
