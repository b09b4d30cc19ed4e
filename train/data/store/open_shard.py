"""A shard that is open for reading."""

import os
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from train.data.store.mds import Columns
from train.errors import DataError
from train.storage.cache_directory import touch

_COUNT_BYTES: Final = 4
_TOUCH_SECONDS: Final = 5.0


class EvictedError(Exception):
    """A cached shard was emptied while it was open: its disk is full. It can be fetched again."""


class OpenShard:
    """A shard file and where its samples lie in it.

    Reads with `pread` and not through a memory map: a file that is cut short while it is mapped
    kills the process, while a short read is an error like any other.
    """

    def __init__(
        self, descriptor: int, *, name: str, samples: int, columns: Columns, is_cached: bool
    ) -> None:
        """Take over a descriptor and read the header.

        Args:
            descriptor: of the shard's file; closed with the shard, or if this raises.
            name: what to call the shard in messages.
            samples: how many the index promises.
            columns: of them, likewise.
            is_cached: it lies in a cache, which wants to know when it was used last.

        Raises:
            EvictedError: it has left the cache.
            DataError: the header is not that of a shard with these samples.
        """
        self._descriptor = descriptor
        self._num_bytes = os.fstat(descriptor).st_size
        self._name = name
        self._is_cached = is_cached
        self._touched_seconds = time.monotonic()
        try:
            # The number of samples, then where each begins, then the end of the last.
            begin = _COUNT_BYTES * (samples + 2)
            header = np.frombuffer(self._pread(begin, 0), np.uint32)
            bounds = header.astype(np.int64)
            bounds[0] = begin
            if header[0] != samples or (np.diff(bounds) < 0).any() or bounds[-1] > self._num_bytes:
                raise DataError(
                    f"Shard {name} does not hold the {samples} samples that its index promises; "
                    "build the corpus again."
                )
            if not columns.are_those_of(self._pread(int(bounds[1]) - begin, begin)):
                raise DataError(
                    f"Shard {name} has other columns than its index says; copy or build the corpus "
                    "again."
                )
        except BaseException:
            self.close()
            raise
        self._begins: npt.NDArray[np.uint32] = header[1:]

    @property
    def is_unlinked(self) -> bool:
        """Whether it is gone from its directory, and stays on the disk while it is open."""
        return os.fstat(self._descriptor).st_nlink == 0

    def read(self, place: int) -> bytes:
        """The bytes of one of its samples.

        Raises:
            EvictedError: it has left the cache.
            DataError: they cannot be read.
        """
        now = time.monotonic()
        if self._is_cached and now - self._touched_seconds > _TOUCH_SECONDS:
            self._touched_seconds = now
            touch(self._descriptor)
        begin, end = int(self._begins[place]), int(self._begins[place + 1])
        return self._pread(end - begin, begin)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise DataError(f"Shard {self._name} cannot be read: {error.strerror}.") from error
        if len(data) != length:
            if self._is_cached:
                raise EvictedError
            raise DataError(
                f"Shard {self._name} became shorter while it was read; copy it again from where "
                "the corpus came from."
            )
        return data
