"""Sequences of each step: a pure function of the configuration and the sources."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from train.data.balance import balanced
from train.data.mixture import Mixture
from train.data.sequences import FittedSequences, PlannedSequence
from train.data.sources import Source, Sources
from train.errors import DataError
from train.storage.record import Count, Record

Ints = npt.NDArray[np.int64]


class Entry(NamedTuple):
    """One entry of a global batch.

    Attributes:
        number: of the entry, from 0.
        source: where its sequence comes from.
        sequence: what it holds.
        choice: which choice of spans, where a step holds the same sequence with several.
    """

    number: int
    source: Source
    sequence: PlannedSequence
    choice: int


class Position(Record):
    """How far a run has read.

    Attributes:
        rows_given: sequences that each source has given.
        anchors: where the next one of each lies, see `FittedSequences.anchor`; None where any is
            found at once.
    """

    rows_given: list[Count]
    anchors: list[Annotated[list[Count], Field(min_length=4, max_length=4)] | None]


class StepPlan:
    """The global batches of a run, the same on any number of ranks and after any restart.

    Args:
        sources: of the run.
        mixture: how each step's sequences are shared among them.
        entries: sequences in a global batch.
        choices: choices of spans with which a step holds each sequence.
        is_balanced: whether the entries of a step are ordered so that each part of them costs the
            encoders about as much; which sequences it holds is the same.
    """

    def __init__(
        self,
        sources: Sources,
        mixture: Mixture,
        *,
        entries: int,
        choices: int = 1,
        is_balanced: bool = False,
    ):
        assert entries % choices == 0, "checked with the configuration"
        self.sources = sources
        self.mixture = mixture
        self.entries = entries
        self.choices = choices
        self.is_balanced = is_balanced
        self._balanced = lru_cache(maxsize=1)(self._all_balanced)

    def step(self, step: int, *, first: int = 0, stop: int | None = None) -> list[Entry]:
        """The entries [first, stop) of a step, which counts from 1; by default all.

        Raises:
            DataError: the lengths of documents cannot be read, or one fits no sequence.
        """
        if self.is_balanced:
            return self._balanced(step)[first:stop]
        return self._as_mixed(step, range(first, self.entries if stop is None else stop))

    def _as_mixed(self, step: int, numbers: Iterable[int]) -> list[Entry]:
        mixed = self.mixture.step(step)
        entries: list[Entry] = []
        for number in numbers:
            place, choice = divmod(number, self.choices)
            of_source, of_sequence = mixed[place]
            source = self.sources.all[of_source]
            sequence = source.sequences.sequence(of_sequence)
            entries.append(Entry(number=number, source=source, sequence=sequence, choice=choice))
        return entries

    def _all_balanced(self, step: int) -> list[Entry]:
        entries = self._as_mixed(step, range(self.entries))
        order = balanced([entry.sequence.cost for entry in entries])
        return [entries[place]._replace(number=number) for number, place in enumerate(order)]

    def position(self, step: int) -> Position:
        """What a checkpoint after a step keeps, so that going on needs no planning from the start.

        It is no more than a short cut: without it the same sequences follow.
        """
        given = self.mixture.given(step).tolist()
        return Position(
            rows_given=given,
            anchors=[
                source.sequences.anchor(count)
                for source, count in zip(self.sources.all, given, strict=True)
            ],
        )

    def start_at(self, position: Position, *, step: int) -> None:
        """Take the short cut.

        Raises:
            DataError: the position is not one of this plan.
        """
        given = self.mixture.given(step).tolist()
        # Sources that are new have given nothing.
        rows_given = position.rows_given + [0] * (len(given) - len(position.rows_given))
        if rows_given != given or len(position.anchors) != len(position.rows_given):
            raise DataError(
                f"the checkpoint of step {step} has read {position.rows_given} sequences of "
                f"the sources, but this configuration says {given}: change data.sources, batch and "
                "steps back to what they were, or start another run with init_from"
            )
        for source, anchor, count in zip(self.sources.all, position.anchors, given, strict=False):
            if isinstance(source.sequences, FittedSequences) and anchor is not None:
                source.sequences.start_at(anchor, number=count)


def identities(entries: list[Entry]) -> Ints:
    """[p, 6] entry, source, epoch, stored number, and range of tokens, of all parts."""
    if not entries:
        return np.zeros((0, 6), dtype=np.int64)
    heads = np.array(
        [[entry.number, entry.source.number, entry.sequence.epoch] for entry in entries]
    )
    counts = [len(entry.sequence.parts) for entry in entries]
    parts = np.concatenate([entry.sequence.parts for entry in entries])
    return np.concatenate([np.repeat(heads, counts, axis=0), parts], axis=1)
