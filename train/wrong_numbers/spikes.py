"""Spikes: steps whose loss or gradient norm is far above what is usual."""

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final

from pydantic import Field

from train.storage.record import Count, Record
from train.wrong_numbers.config import SpikesConfig

_OF_NORMAL: Final = 1.4826
"""Standard deviations of a normal distribution in its median distance from the median."""
_LEAST_SHARE: Final = 1e-3


class Seen(Record):
    """What judging the next step needs; part of a checkpoint.

    Attributes:
        usual: loss and gradient norm of the last steps that were no spikes.
        row: the last steps, as far as they were spikes.
    """

    usual: list[tuple[float, float]] = Field(default=[])
    row: list[Count] = Field(default=[])


class Spikes:
    """Finds spikes. All ranks see the same numbers, and find the same.

    Args:
        config: None finds none.
    """

    def __init__(self, config: SpikesConfig | None) -> None:
        self._config = config
        self._usual: deque[tuple[float, float]] = deque()
        self._row: list[int] = []
        if config is not None:
            self._usual = deque(maxlen=config.window_steps)

    def see(self, step: int, *, loss: float, gradient_norm: float) -> range | None:
        """Judge a step that was made.

        Returns:
            The spikes that are to be left out, the step among them; None if there are none, or
            too few in a row.
        """
        config = self._config
        if config is None:
            return None
        losses, norms = zip(*self._usual, strict=True) if self._usual else ((), ())
        is_full = len(self._usual) == config.window_steps
        if not is_full or not (
            is_spike(loss, losses, threshold=config.threshold)
            or is_spike(gradient_norm, norms, threshold=config.threshold)
        ):
            self._usual.append((loss, gradient_norm))
            self._row.clear()
            return None
        self._row.append(step)
        if len(self._row) < config.patience_steps:
            return None
        found = range(self._row[0], step + 1)
        self._row.clear()
        return found

    @property
    def seen(self) -> Seen:
        """What to keep."""
        return Seen(usual=list(self._usual), row=list(self._row))

    @seen.setter
    def seen(self, seen: Seen) -> None:
        self._usual.clear()
        if self._config is not None:
            self._usual.extend(seen.usual)
            self._row = list(seen.row)


def is_spike(value: float, usual: Sequence[float], *, threshold: float) -> bool:
    """Whether a value is so many deviations above the median of what is usual."""
    middle = median(usual)
    distance = median([abs(each - middle) for each in usual])
    return value > middle + threshold * max(_OF_NORMAL * distance, _LEAST_SHARE * abs(middle))
