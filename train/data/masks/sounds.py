"""Masked rows of sounds, and what they are told from or by."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.encoders.audio import AudioEncoderConfig, AudioSpans
from model.objectives.contrast import ContrastedSounds
from model.objectives.units import SoundsOfUnits
from train.data.masks.clusters import Features, nearest_of, row_features
from train.data.masks.protocol import Masked, Masking
from train.data.spans.places import Ints


@dataclass(frozen=True, kw_only=True)
class SoundMasking(Masking):
    """Masks runs of rows of each sound.

    Attributes:
        starts: share of a sound's rows at which a mask starts.
        mask_rows: of a mask.
    """

    starts: float
    mask_rows: int

    def masked(self, spans: AudioSpans, draws: Sequence[np.random.Generator | None]) -> Masked:
        """With some rows masked, which are scored."""
        vectors = spans.vectors[: spans.num_vectors].numpy()
        owners = spans.cells.numpy()[vectors] // spans.longest_rows
        counts = np.bincount(owners, minlength=spans.num_spans)
        before = (counts.cumsum() - counts).tolist()
        rows = [
            masked_rows(count, draw, starts=self.starts, mask_rows=self.mask_rows)
            for count, draw in zip(counts.tolist(), draws, strict=True)
        ]
        found = np.concatenate([some + first for some, first in zip(rows, before, strict=True)])
        return Masked(spans=self._of(spans, found, rows, draws), vectors=found)

    @abstractmethod
    def _of(
        self,
        spans: AudioSpans,
        masked: Ints,
        rows: Sequence[Ints],
        draws: Sequence[np.random.Generator | None],
    ) -> Any: ...


def masked_rows(
    count: int, random: np.random.Generator | None, *, starts: float, mask_rows: int
) -> Ints:
    """Rows of a sound that are masked, in rising order; none of a sound of one row.

    Args:
        count: rows of the sound.
        random: draws; None masks nothing.
        starts: share of the rows at which a mask starts, rounded at random.
        mask_rows: of a mask; half of the sound at most.
    """
    if random is None or count < 2:
        return np.zeros(0, dtype=np.int64)
    length = min(mask_rows, count // 2)
    places = count - length + 1
    wanted = min(places, max(1, int(starts * count + random.random())))
    first = random.permutation(places)[:wanted]
    hidden = np.zeros(count, dtype=np.bool_)
    hidden[(first[:, None] + np.arange(length)).reshape(-1)] = True
    if hidden.all():  # something must be heard
        hidden[random.integers(count)] = False
    return np.flatnonzero(hidden)


@dataclass(frozen=True, kw_only=True)
class ContrastMasking(SoundMasking):
    """Draws what each masked row is told from.

    Attributes:
        negatives: of each row; a row that is masked alone is told from itself, which costs nothing.
    """

    negatives: int

    def _of(
        self,
        spans: AudioSpans,
        masked: Ints,
        rows: Sequence[Ints],
        draws: Sequence[np.random.Generator | None],
    ) -> ContrastedSounds:
        found = [np.zeros((0, self.negatives), dtype=np.int64)]
        first = 0
        for some, draw in zip(rows, draws, strict=True):
            if draw is None or not len(some):
                continue
            others = others_of(len(some), self.negatives, draw)
            found.append(first + others)
            first += len(some)
        return ContrastedSounds(
            whole=spans,
            masked=torch.from_numpy(masked),
            negatives=torch.from_numpy(np.concatenate(found)),
            slots=spans.slots,
            num_vectors=spans.num_vectors,
        )


def others_of(count: int, wanted: int, random: np.random.Generator) -> Ints:
    """[count, wanted] of the others of each, with replacement; of one alone itself."""
    own = np.arange(count)[:, None]
    if count == 1:
        return np.zeros((1, wanted), dtype=np.int64)
    others = random.integers(count - 1, size=(count, wanted))
    return others + (others >= own)


@dataclass(frozen=True, kw_only=True)
class UnitMasking(SoundMasking):
    """Tells the cluster of each masked row.

    Attributes:
        encoder: that reads the sounds.
        middles: of the clusters.
    """

    encoder: AudioEncoderConfig
    middles: npt.NDArray[np.float32] = field(repr=False)

    def _of(
        self,
        spans: AudioSpans,
        masked: Ints,
        rows: Sequence[Ints],
        draws: Sequence[np.random.Generator | None],
    ) -> SoundsOfUnits:
        features: Features = row_features(spans, self.encoder)
        units = nearest_of(features[masked], self.middles)
        return SoundsOfUnits(
            whole=spans,
            masked=torch.from_numpy(masked),
            units=torch.from_numpy(units),
            slots=spans.slots,
            num_vectors=spans.num_vectors,
        )
