"""Which rows make each step: a pure function of the configuration and the sources."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.mixture import Mixture
from train.data.rows import Row
from train.data.sources import Source, Sources
from train.errors import DataError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Slot:
    """One place of a global batch.

    Attributes:
        number: of the place, from 0.
        source: where its row comes from.
        row: what it holds.
        layout: which choice of spans, where a step holds the same row with several.
    """

    number: int
    source: Source
    row: Row
    layout: int


class Plan:
    """The global batches of a run, the same on any number of ranks and after any restart.

    Args:
        sources: of the run.
        mixture: how each step's rows are shared among them.
        slots: sequences in a global batch.
        layouts: choices of spans with which a step holds each row.
    """

    def __init__(self, sources: Sources, mixture: Mixture, *, slots: int, layouts: int = 1):
        assert slots % layouts == 0, "checked with the configuration"
        self.sources = sources
        self.mixture = mixture
        self.slots = slots
        self.layouts = layouts

    def step(self, step: int, *, first: int = 0, stop: int | None = None) -> list[Slot]:
        """The places [first, stop) of a step, which counts from 1; by default all.

        Raises:
            DataError: the lengths of documents cannot be read, or one fits no row.
        """
        mixed = self.mixture.step(step)
        numbers = mixed.numbers()
        slots: list[Slot] = []
        for number in range(first, self.slots if stop is None else stop):
            place, layout = divmod(number, self.layouts)
            source = self.sources.all[int(mixed.of_row[place])]
            row = source.rows.row(int(numbers[place]))
            slots.append(Slot(number=number, source=source, row=row, layout=layout))
        return slots

    def position(self, step: int) -> dict[str, Any]:
        """What a checkpoint after a step keeps, so that going on needs no planning from the start.

        It is no more than a short cut: without it the same rows follow.
        """
        given = self.mixture.given(step).tolist()
        return {
            "rows_given": given,
            "anchors": [
                source.rows.anchor(count)
                for source, count in zip(self.sources.all, given, strict=True)
            ],
        }

    def start_at(self, position: dict[str, Any], *, step: int) -> None:
        """Take the short cut.

        Raises:
            DataError: the position is not one of this plan.
        """
        given = self.mixture.given(step).tolist()
        if position.get("rows_given") != given:
            raise DataError(
                f"the checkpoint of step {step} has read {position.get('rows_given')} rows of the "
                f"sources, but this configuration says {given}: change data.sources, batch and "
                "steps back to what they were, or start another run with init_from"
            )
        for source, anchor in zip(self.sources.all, position["anchors"], strict=True):
            if anchor is not None:
                source.rows.start_at(anchor)


def identities(slots: list[Slot]) -> Ints:
    """[p, 6] place, source, epoch, stored number, and range of tokens, of all parts of the rows."""
    if not slots:
        return np.zeros((0, 6), dtype=np.int64)
    heads = np.array([[slot.number, slot.source.number, slot.row.epoch] for slot in slots])
    counts = [len(slot.row.pieces) for slot in slots]
    pieces = np.concatenate([slot.row.pieces for slot in slots])
    return np.concatenate([np.repeat(heads, counts, axis=0), pieces], axis=1)
