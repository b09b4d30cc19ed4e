"""The order in which a run reads a source's documents, as a pure function that any rank may ask.

Nothing here depends on the number of ranks, so a run resumed on other hardware continues the order.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

_SHARDS: Final = 0
_WINDOW: Final = 1
_KEPT_WINDOWS: Final = 4

Ints = npt.NDArray[np.int64]


class GlobalOrder:
    """Numbers of documents in the order of training, epoch after epoch, without end.

    An epoch visits the shards in random order; the resulting line of documents is cut into
    windows and each window is shuffled. A reader therefore touches few shards at a time, which is
    what object storage wants, while neighbours in a corpus still part.

    The permutations come from raw bits of a counter-based generator, whose values numpy keeps
    stable over its releases, which it does not promise for `Generator.permutation`.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        source: int = 0,
        shuffle: bool = True,
        window: int = 65_536,
    ) -> None:
        """Describe the order; nothing is drawn yet.

        Args:
            shard_sizes: samples in each shard, one at least in all; ids count through the shards
                in this order.
            seed: of the run; 0 or more.
            source: number of the source among those of the run; each has draws of its own.
            shuffle: False gives ids in rising order, every epoch the same.
            window: samples that are shuffled together.
        """
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._sizes)[:-1]))
        self._seed = seed
        self._source = (source,) if source else ()
        self._shuffle = shuffle
        self._window = window
        self._kept_shards = lru_cache(maxsize=1)(self._shard_order)
        self.window_ids = lru_cache(_KEPT_WINDOWS)(self._window_ids)
        """Ids of the samples of one window of an epoch, in order."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        return int(self._sizes.sum())

    def range(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The (epoch, sample id) at positions start, ..., stop - 1, through all epochs."""
        found: list[tuple[int, int]] = []
        while start < stop:
            epoch, place = divmod(start, len(self))
            window, offset = divmod(place, self._window)
            ids = self.window_ids(epoch, window)[offset : offset + stop - start].tolist()
            found += [(epoch, sample) for sample in ids]
            start += len(ids)
        return found

    @property
    def num_windows(self) -> int:
        """Windows in one epoch."""
        return -(-len(self) // self._window)

    def locate(self, ids: Ints) -> tuple[Ints, Ints]:
        """The shard of each sample, and its place in there."""
        shards = np.searchsorted(self._starts, ids, side="right") - 1
        return shards, ids - self._starts[shards]

    def permutation(self, length: int, *key: int) -> Ints:
        """A random order of `length` things, drawn from the seed and a key."""
        generator = np.random.Philox(np.random.SeedSequence((self._seed, *key, *self._source)))
        # Stable, so that a tie between two draws does not depend on the sorting algorithm.
        return np.argsort(generator.random_raw(length), kind="stable")

    def _window_ids(self, epoch: int, window: int) -> Ints:
        shards, ends = self._kept_shards(epoch)
        first = window * self._window
        line = np.arange(first, min(first + self._window, len(self)))
        if self._shuffle:
            line = line[self.permutation(line.size, _WINDOW, epoch, window)]
        rank = np.searchsorted(ends, line, side="right")
        shard = shards[rank]
        return self._starts[shard] + line - (ends[rank] - self._sizes[shard])

    def _shard_order(self, epoch: int) -> tuple[Ints, Ints]:
        """Shards in the order of the epoch, and where each one ends in the line of samples."""
        shards = np.arange(self._sizes.size)
        if self._shuffle:
            shards = self.permutation(self._sizes.size, _SHARDS, epoch)
        return shards, np.cumsum(self._sizes[shards])
