"""Masked tokens of spans of text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.encoders.text import TextSpans
from model.objectives.tokens import MaskedTokens
from train.data.masks.protocol import Masked, Masking, chosen


@dataclass(frozen=True, kw_only=True)
class TokenMasking(Masking):
    """Masks tokens of each span.

    Attributes:
        share: of a span's tokens.
        padding: token that is shown in their place; no span has it.
    """

    share: float
    padding: int

    def masked(self, spans: TextSpans, draws: Sequence[np.random.Generator | None]) -> Masked:
        """With some tokens masked, and all of them scored."""
        rows = spans.vectors[: spans.num_vectors].numpy()
        owners = spans.cells.numpy()[rows] // spans.longest_rows
        counts = np.bincount(owners, minlength=spans.num_spans).tolist()
        hidden = np.concatenate(
            [
                chosen(max(1, round(self.share * count)), count, draw)
                for count, draw in zip(counts, draws, strict=True)
            ]
        )
        is_scored = np.repeat([draw is not None for draw in draws], counts)
        scored, masked = np.flatnonzero(is_scored), np.flatnonzero(hidden)
        shown = spans.tokens.clone()
        shown[torch.from_numpy(rows[masked])] = self.padding
        return Masked(
            spans=MaskedTokens(
                whole=spans,
                shown=shown,
                masked=torch.from_numpy(masked),
                scored=torch.from_numpy(scored),
                terms=torch.from_numpy(np.searchsorted(scored, masked)),
                slots=spans.slots,
                num_vectors=spans.num_vectors,
            ),
            vectors=scored,
        )
