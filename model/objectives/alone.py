"""An encoder that trains alone."""

from typing import Any

import torch
from torch import nn

from model.attention import SelfAttention
from model.backend import Backend
from model.batch import Batch
from model.encoders.protocol import EncoderKind
from model.layers import Layers
from model.loss import Loss
from model.objectives.protocol import ObjectiveKind
from model.recompute import Recompute


class EncoderAlone(nn.Module):
    """One encoder, under the name that it has in a whole model, and what judges it.

    Args:
        modality: of the encoder.
        encoder: its configuration.
        objective: what it trains for.
        vocabulary: tokens that there are.
        attention: what computes attention, as in `ModelConfig`.
        recompute: activations that are computed again in the backward.
    """

    def __init__(
        self,
        modality: str,
        encoder: EncoderKind,
        objective: ObjectiveKind,
        *,
        vocabulary: int,
        attention: Backend = "auto",
        recompute: Recompute = "none",
    ):
        super().__init__()
        layers = Layers()
        self.modality = modality
        built = encoder.build(vocabulary=vocabulary, layers=layers, recompute=recompute)
        self.encoders = nn.ModuleDict({modality: built})
        self.objective: Any = objective.build(
            built, encoder, vocabulary=vocabulary, layers=layers, recompute=recompute
        )
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.backend = attention

    def forward(self, batch: Batch) -> Loss:
        """Loss over what is scored of one microbatch, summed."""
        return self.objective(self.encoders[self.modality], batch.spans[self.modality])


def parameter_counts(
    modality: str, encoder: EncoderKind, objective: ObjectiveKind, *, vocabulary: int
) -> dict[str, int]:
    """Parameters by part, counted on the meta device: nothing is allocated.

    Args:
        modality: of the encoder.
        encoder: its configuration.
        objective: what it trains for.
        vocabulary: tokens that there are.
    """
    with torch.device("meta"):
        model = EncoderAlone(modality, encoder, objective, vocabulary=vocabulary)
    counts = {f"encoder.{modality}": 0, "objective": 0}
    for name, parameter in model.named_parameters():
        part = "objective" if name.startswith("objective.") else f"encoder.{modality}"
        counts[part] += parameter.numel()
    return counts
