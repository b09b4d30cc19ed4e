"""Microbatches of each step, read one step ahead; which samples, only the step decides."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotReady
from typing import Protocol, Self

from model.batch import Batch
from train.data.collate import Collator
from train.data.sample import Sample
from train.errors import DataError


class Samples(Protocol):
    """Random access to stored samples."""

    def __getitem__(self, sample_id: int, /) -> Sample:
        """One sample; raises DataError where its shard is missing or damaged."""
        ...


class Order(Protocol):
    """The global order of samples, the same on every rank."""

    def range(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch, sample id) of the positions in [start, stop)."""
        ...


class Feed:
    """One rank's share of each global batch.

    Step k (from 1) consumes positions [(k-1) G, k G) of the global order, whatever the number of
    ranks; rank r of R takes the r-th of R equal parts, in microbatches. A single thread reads the
    next step while the current one computes; its errors surface in `step`.
    """

    def __init__(
        self,
        samples: Samples,
        order: Order,
        collate: Collator,
        *,
        global_sequences: int,
        micro_sequences: int,
        rank: int,
        ranks: int,
        timeout_seconds: float,
        last_step: int,
    ):
        assert global_sequences % (ranks * micro_sequences) == 0, "checked with the configuration"
        self.samples = samples
        self.order = order
        self.collate = collate
        self.global_sequences = global_sequences
        self.micro_sequences = micro_sequences
        self.rank = rank
        self.ranks = ranks
        self.timeout_seconds = timeout_seconds
        self.last_step = last_step
        self.wait_seconds = 0.0
        """How long the last call of `step` had to wait."""
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[int, Future[list[Batch]]] | None = None

    def __enter__(self) -> Self:
        """Start reading on the first `step`."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what was read ahead."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def step(self, step: int) -> list[Batch]:
        """This rank's microbatches of one step.

        Raises:
            DataError: a shard is missing or damaged, or reading took longer than the timeout.
        """
        started = time.perf_counter()
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self._reader.submit(self._read, step))
        try:
            batches = self._ahead[1].result(timeout=self.timeout_seconds)
        except NotReady:
            raise DataError(
                f"reading the samples of step {step} took longer than {self.timeout_seconds:g} s: "
                "check the store, or raise data.timeout_seconds"
            ) from None
        self._ahead = None
        if step < self.last_step:
            self._ahead = (step + 1, self._reader.submit(self._read, step + 1))
        self.wait_seconds = time.perf_counter() - started
        return batches

    def _read(self, step: int) -> list[Batch]:
        share = self.global_sequences // self.ranks
        first = (step - 1) * self.global_sequences + self.rank * share
        pairs = [
            (epoch, self.samples[index]) for epoch, index in self.order.range(first, first + share)
        ]
        return [
            self.collate(pairs[i : i + self.micro_sequences])
            for i in range(0, share, self.micro_sequences)
        ]
