"""Masked units: of a masked row of a sound, the cluster is told in which it was heard.

Source: HuBERT (2106.07447) §3.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.config import PathText
from model.encoders.audio import AudioEncoderConfig
from model.layers import Layers, normal
from model.loss import Loss
from model.objectives.sounds import TEMPERATURE, MaskedSounds, Masker, SoundObjectiveKind
from model.recompute import Recompute


class MaskedUnitsConfig(SoundObjectiveKind):
    """The clusters that are told apart."""

    kind: Literal["masked_units"]
    units: Annotated[int, Field(ge=2, le=2**16)] = 100
    """Clusters of rows by what is heard in them."""
    clusters: PathText
    """File of their middles, as `python -m tools.units` writes it."""

    def build(
        self,
        encoder: Any,
        config: AudioEncoderConfig,
        *,
        vocabulary: int,
        layers: Layers,
        recompute: Recompute,
    ) -> "Units":
        """A vector for each cluster."""
        return Units(self, config, layers)


@dataclass(frozen=True, kw_only=True, eq=False)
class SoundsOfUnits(MaskedSounds):
    """Masked sounds, with the cluster of each masked row.

    Attributes:
        units: [C] numbers of clusters.
    """

    units: Int64[Tensor, "C"]


class Units(nn.Module):
    """Masks, and a vector for each cluster."""

    def __init__(self, objective: MaskedUnitsConfig, encoder: AudioEncoderConfig, layers: Layers):
        super().__init__()
        self.units = objective.units
        self.masker = Masker(encoder, objective.width, layers)
        self.unit_embedding: Any = layers.table(objective.units, objective.width, init=normal(1.0))

    def forward(self, encoder: Any, spans: SoundsOfUnits) -> Loss:
        """Nats of the cluster of each masked row; rows that are seen have no part in it."""
        context = self.masker(encoder, encoder.rows(spans.whole), spans)
        numbers = torch.arange(self.units, device=context.device)
        terms = unit_loss(context, self.unit_embedding(numbers), spans.units)
        return Loss(terms.sum(), terms.detach())


def unit_loss(
    context: Float[Tensor, "C D"], vectors: Float[Tensor, "u D"], units: Int64[Tensor, "C"]
) -> Float[Tensor, "C"]:
    """Nats of each row's cluster among all, by cosines."""
    context, vectors = F.normalize(context.float(), dim=-1), F.normalize(vectors.float(), dim=-1)
    return F.cross_entropy(context @ vectors.T / TEMPERATURE, units, reduction="none")
