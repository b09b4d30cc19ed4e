"""Rows of a run, thinned as they come: few enough for a browser, and no bad step among the lost."""

import math
from collections.abc import Iterable
from typing import Any, Final

from train.watch.wandb_run.rows import Row

MOST_BUCKETS: Final = 150
"""Stretches of a run, each of which leaves a handful of rows."""

_EXTREMES: Final = ("train/loss", "train/gradient_norm", "speed/step_seconds")
"""A bucket keeps the row where each is highest."""
_RARE: Final = ("validation/loss", "validation/loss_whole_split", "train/left_out", "samples")


class Thinning:
    """Keeps of each stretch of steps its last row, the last with norms by block, and its extremes.

    A value that is not finite is higher than any. Rows with what is rare stay.

    Args:
        total_steps: of the run. Short runs keep every row.
    """

    def __init__(self, *, total_steps: int) -> None:
        # A bucket leaves up to five rows: with fewer steps nothing would be won.
        is_short = total_steps <= 5 * MOST_BUCKETS
        self._size = 1 if is_short else math.ceil(total_steps / MOST_BUCKETS)
        self._bucket: list[Row] = []

    def add(self, row: Row) -> list[Row]:
        """Takes a row of a step behind the last one's; rows to show, by rising steps."""
        if self._size == 1:
            return [row]
        number = row.step // self._size
        done = self.rest() if self._bucket and self._bucket[0].step // self._size != number else []
        self._bucket.append(row)
        return done

    def rest(self) -> list[Row]:
        """What of the rows under way is to be shown."""
        bucket, self._bucket = self._bucket, []
        return list(_kept(bucket))


def _kept(bucket: list[Row]) -> Iterable[Row]:
    kept = {bucket[-1].step} if bucket else set[int]()
    for name in _EXTREMES:
        values = [(_height(row.values[name]), row.step) for row in bucket if name in row.values]
        if values:
            kept.add(max(values)[1])
    kept.update([row.step for row in bucket if _has_norms(row)][-1:])
    for row in bucket:
        if row.step in kept or any(name in row.values for name in _RARE) or row.samples:
            yield row


def _has_norms(row: Row) -> bool:
    return any(name.startswith("norm/") for name in row.values)


def _height(value: Any) -> float:
    return value if math.isfinite(value) else math.inf
