"""What keeps a part of a microbatch's spans from the encoder that trains alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.batch import Batch, PackedSpans
from train.data.sample import Sample
from train.data.spans.places import FlatSpans, Ints
from train.data.spans.protocol import Draw


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Spans of which a part is masked.

    Attributes:
        spans: as the objective reads them.
        vectors: of the spans as they were, that carry a term, in rising order.
    """

    spans: PackedSpans
    vectors: Ints


@dataclass(frozen=True, kw_only=True)
class Masking(ABC):
    """Masks a part of each span.

    Attributes:
        modality: of the encoder that trains.
        seed: of the run.
    """

    modality: str
    seed: int

    @abstractmethod
    def masked(self, spans: Any, draws: Sequence[np.random.Generator | None]) -> Masked:
        """Spans with a part of them masked.

        Args:
            spans: packed, one at least.
            draws: what is drawn with for each; None for one of which nothing is to be scored.
        """

    def __call__(
        self, batch: Batch, samples: Sequence[Sample], spans: FlatSpans, draws: Sequence[Draw]
    ) -> Batch:
        """A microbatch whose spans are masked, and that scores the slots which carry a term.

        Args:
            batch: whose tokens nobody predicts.
            samples: of which it was made.
            spans: those of the modality.
            draws: of each sample.
        """
        packed = batch.spans[self.modality]
        # Without a span there is one that pads.
        generators = [*self._generators(samples, spans, draws)] or [None]
        found = self.masked(packed, generators)
        scored = torch.from_numpy(found.vectors)
        return replace(
            batch,
            spans={self.modality: found.spans},
            scored=packed.slots[scored],
            num_scored=len(scored),
            first_of_span=torch.zeros(len(scored), dtype=torch.bool),
        )

    def _generators(
        self, samples: Sequence[Sample], spans: FlatSpans, draws: Sequence[Draw]
    ) -> Iterator[np.random.Generator | None]:
        number = np.zeros(len(samples), dtype=np.int64)
        for owner in spans.owners.tolist():
            sample, draw = samples[owner], draws[owner]
            number[owner] += 1
            if sample.scored is not None and not sample.scored.any():
                yield None
                continue
            place = (sample.source, draw.choice, int(number[owner]))
            key = [self.seed, draw.epoch, sample.id]
            yield np.random.default_rng(np.random.SeedSequence(key, spawn_key=place))


def chosen(count: int, of: int, random: np.random.Generator | None) -> npt.NDArray[np.bool_]:
    """So many of some, at random; none without a generator."""
    found = np.zeros(of, dtype=np.bool_)
    if random is not None:
        found[random.permutation(of)[:count]] = True
    return found
