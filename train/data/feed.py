"""Microbatches of each step, read ahead; which sequences, only the step decides."""

import time
from collections import deque
from collections.abc import Callable, Container
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

import torch

from model.batch import Batch
from parallel.named import Part, named
from train.data.balance import spaced
from train.data.collate import Collator
from train.data.plan import Entry, Ints, Position, StepPlan, identities
from train.data.sequences import PlannedSequence
from train.data.sources import Source
from train.errors import DataError

Result = TypeVar("Result")

STEPS_AHEAD: Final = 2
"""Steps whose microbatches are ready before they are asked for."""
PLANNED_STEPS: Final = 32
"""Steps whose shards are fetched before their sequences are read, the step itself included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepData:
    """One rank's part of a step.

    Attributes:
        batches: its microbatches; none of a step that is left out.
        identities: [p, 6] what they were made of, see `plan.identities`.
        first: number of its first entry in the global batch.
        entries: how many it has.
        position: what a checkpoint after the step keeps, see `StepPlan.position`.
    """

    batches: list[Batch]
    identities: Ints
    first: int
    entries: int
    position: Position

    def without(self) -> "StepData":
        """The same of a step that is left out."""
        return replace(self, batches=[], identities=self.identities[:0], entries=0)


class Feed(AbstractContextManager["Feed"]):
    """One rank's share of each global batch.

    Rank r of R takes the r-th of R equal parts of the plan's entries, in microbatches; where the
    plan is balanced, these come in the order that suits the pipeline's `stages`. A single thread
    plans and reads ahead; its errors surface in `step`. Nothing else may use the plan meanwhile.
    """

    def __init__(
        self,
        plan: StepPlan,
        collate: Collator,
        *,
        micro_sequences: int,
        rank: int,
        ranks: int,
        timeout_seconds: float,
        last_step: int,
        left_out: Container[int] = (),
        stages: int = 1,
    ):
        assert plan.entries % (ranks * micro_sequences) == 0, "checked with the configuration"
        self.plan = plan
        self.collate = collate
        self.micro_sequences = micro_sequences
        self.share = plan.entries // ranks
        self.first = rank * self.share
        self.timeout_seconds = timeout_seconds
        self.last_step = last_step
        self.left_out = left_out
        """Steps of which nothing is read."""
        self.stages = stages
        self.wait_seconds = 0.0
        """How long the last call of `step` had to wait."""
        self._reader = _Reader()
        self._ahead: deque[Future[StepData]] = deque()
        self._planned: dict[int, tuple[list[Entry], dict[int, dict[int, None]]]] = {}
        """Places of steps, and the shards that they need; the reader's alone."""
        self._next: int | None = None

    def __exit__(self, *exception: object) -> None:
        """Drop what was read ahead."""
        for future in self._ahead:
            future.cancel()
        self._reader.close()
        for source in self.plan.sources.all:
            source.corpus.train.close()
            source.corpus.validation.close()

    def step(self, step: int) -> StepData:
        """This rank's part of one step; after the first, steps come one by one.

        Raises:
            DataError: a shard is missing or damaged, or reading took longer than the timeout.
        """
        started = time.perf_counter()
        if self._next is None:
            self._next = step
            self._read_ahead(step)
        assert self._next - len(self._ahead) == step, "the next one"
        future = self._ahead.popleft()
        if not wait([future], timeout=self.timeout_seconds).done:
            raise DataError(
                f"reading the samples of step {step} took longer than {self.timeout_seconds:g} s, "
                "and other ranks wait no longer: check the store, or raise "
                "collective_timeout_seconds"
            )
        data = future.result()
        self._read_ahead(step + STEPS_AHEAD)
        self.wait_seconds = time.perf_counter() - started
        return data

    def go_back(self, step: int, position: Position | None) -> None:
        """Have the step behind an earlier one come next.

        Args:
            step: the earlier one.
            position: after it, if that is known.
        """
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._next = None

        def forget() -> None:
            self._planned.clear()
            if position is not None:
                self.plan.start_at(position, step=step)

        self._reader.submit(forget).result(self.timeout_seconds)

    def try_step(self, step: int) -> StepData | Exception:
        """This rank's part of one step, or why it has none: for the ranks to agree on first."""
        try:
            with named(Part.READ):
                return self.step(step)
        except Exception as error:
            return error

    def name_documents(self, data: StepData, *, most: int) -> list[str]:
        """The first documents of a step's part in words: source, number and id."""

        def read() -> list[str]:
            names: dict[str, None] = {}
            for _, of_source, _, number, *_ in data.identities.tolist():
                names[_named(self.plan.sources.all[of_source], number)] = None
                if len(names) == most:
                    break
            return list(names)

        # The reader's: no other thread may read.
        return self._reader.submit(read).result(self.timeout_seconds)

    def alone(self, step: int) -> list[Batch]:
        """This rank's part of one step once more, each sequence a microbatch of its own."""

        def read() -> list[Batch]:
            return [
                self.collate(
                    [(entry.sequence.epoch, entry.source.read(entry.sequence))],
                    choices=[entry.choice],
                    trains=True,
                )
                for entry in self._entries(step)
            ]

        return self._reader.submit(read).result(self.timeout_seconds)

    def name_document(self, step: int, *, place: int, slot: int) -> str:
        """The document that a slot of a sequence of this rank's part of a step reads, in words."""

        def read() -> str:
            source, sequence = self._entries(step)[place][1:3]
            ranges = source.read(sequence).documents
            # Slot 0 of a sequence is nobody's where documents lie behind one `<s>`.
            first = 0 if ranges is None else int((ranges[:, 1] > slot).argmax())
            return _named(source, int(sequence.parts[first, 0]))

        return self._reader.submit(read).result(self.timeout_seconds)

    def _entries(self, step: int) -> list[Entry]:
        return self.plan.step(step, first=self.first, stop=self.first + self.share)

    def _read_ahead(self, last: int) -> None:
        assert self._next is not None, "known from the first step on"
        while self._next <= min(last, self.last_step):
            self._ahead.append(self._reader.submit(self._read, self._next))
            self._next += 1

    def _read(self, step: int) -> StepData:
        entries = [] if step in self.left_out else self._plan_ahead(step)
        samples = [(entry.sequence.epoch, entry.source.read(entry.sequence)) for entry in entries]
        choices = [entry.choice for entry in entries]
        M = self.micro_sequences
        batches = [
            self.collate(samples[i : i + M], choices=choices[i : i + M], trains=True)
            for i in self._in_order(entries)
        ]
        if torch.cuda.is_available():
            batches = [batch.pinned() for batch in batches]
        return StepData(
            batches=batches,
            identities=identities(entries),
            first=self.first,
            entries=len(entries),
            position=self.plan.position(step),
        )

    def _in_order(self, entries: list[Entry]) -> list[int]:
        """Where each microbatch begins among the entries, as they are computed."""
        begins = list(range(0, len(entries), self.micro_sequences))
        if not self.plan.is_balanced:
            return begins
        costs = [
            sum(entry.sequence.cost for entry in entries[i : i + self.micro_sequences])
            for i in begins
        ]
        return [begins[place] for place in spaced(costs, stages=self.stages)]

    def _plan_ahead(self, step: int) -> list[Entry]:
        """The entries of a step; the shards of coming steps are fetched meanwhile."""
        for coming in range(step, min(step + PLANNED_STEPS, self.last_step + 1)):
            if coming not in self._planned and coming not in self.left_out:
                entries = self._entries(coming)
                self._planned[coming] = entries, _shards(entries)
        for source in self.plan.sources.all:
            wanted = (shards.get(source.number, {}) for _, shards in self._planned.values())
            source.corpus.train.prefetch(dict.fromkeys(chain.from_iterable(wanted)))
        return self._planned.pop(step)[0]


class _Reader:
    """A thread that works off calls one by one, and that nobody waits for when a process ends."""

    def __init__(self):
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: Thread | None = None

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have a call made after those before it."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="feed", daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._calls.put((future, partial(work, *arguments)))
        return future

    def close(self) -> None:
        """End after the calls that were not cancelled."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, work = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)


def _named(source: Source, number: int) -> str:
    """A document in words."""
    stored = source.corpus.train.columns(number)
    return f"document {number} of {source.name} ({stored['id']})"


def _shards(entries: list[Entry]) -> dict[int, dict[int, None]]:
    """Remote shards that reading some entries opens, by number of their source, in order."""
    sequences: dict[Source, list[PlannedSequence]] = {}
    for entry in entries:
        if entry.source.corpus.train.place.is_remote:
            sequences.setdefault(entry.source, []).append(entry.sequence)
    return {
        source.number: dict.fromkeys(source.shards_of(mine).tolist())
        for source, mine in sequences.items()
    }
