"""Contrast: of a masked row of a sound, its own code is told from those of other masked rows.

Source: wav2vec 2.0 (2006.11477) §3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.config import Width
from model.encoders.audio import AudioEncoderConfig
from model.encoders.protocol import EncoderKind
from model.layers import Layers, normal
from model.loss import Loss
from model.objectives.sounds import TEMPERATURE, MaskedSounds, Masker, SoundObjectiveKind
from model.recompute import Recompute


class ContrastConfig(SoundObjectiveKind):
    """The codes of masked rows, and how many others each is told from."""

    kind: Literal["contrast"]
    negatives: Annotated[int, Field(ge=1, le=2**12)] = 100
    """Other masked rows of the same sound, drawn with replacement."""
    groups: Annotated[int, Field(ge=1, le=64)] = 2
    """A code has an entry of each."""
    entries: Annotated[int, Field(ge=2, le=2**16)] = 320
    """Of a group, from which one is chosen."""
    code_width: Width = 64
    """Of a code, all groups together."""
    softness: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Temperature of the choice in training, by which its gradient is smoothed (Gumbel's softmax);
    the paper lets it fall from 2 to 0.5."""
    diversity: Annotated[float, Field(ge=0, le=100)] = 0.1
    """Weight of the loss that asks for all entries to be used alike."""

    def build(
        self,
        encoder: Any,
        config: AudioEncoderConfig,
        *,
        vocabulary: int,
        layers: Layers,
        recompute: Recompute,
    ) -> "Contrast":
        """The codes, and what compares."""
        return Contrast(self, config, layers)

    def faults(self, path: str, encoder: EncoderKind) -> Iterator[str]:
        """Another kind of encoder; sizes that do not fit."""
        yield from super().faults(path, encoder)
        if self.code_width % self.groups:
            yield f"{path}.groups: {self.groups} do not divide code_width {self.code_width}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ContrastedSounds(MaskedSounds):
    """Masked sounds, with what each masked row is told from.

    Attributes:
        negatives: [C, n] places in `masked` of other rows of the same sound.
    """

    negatives: Int64[Tensor, "C n"]


class Quantizer(nn.Module):
    """Chooses an entry of each group for a row, and joins them to its code."""

    def __init__(self, objective: ContrastConfig, width: int, layers: Layers):
        super().__init__()
        self.groups, self.entries = objective.groups, objective.entries
        self.softness = objective.softness
        count = self.groups * self.entries
        self.choice: Any = layers.linear(width, count, init=normal(1.0))
        part = objective.code_width // self.groups
        self.codes: Any = layers.table(count, part, init=_uniform)

    def forward(
        self, rows: Float[Tensor, "C E"]
    ) -> tuple[Float[Tensor, "C D"], Float[Tensor, "C g v"]]:
        """Codes, chosen with noise in training, and how likely each entry is without it."""
        C, G = len(rows), self.groups
        logits = self.choice(rows).float().view(C, G, self.entries)
        likely = logits.softmax(dim=-1)
        noisy = logits
        if self.training:
            noisy = logits - torch.empty_like(logits).exponential_().log()
        soft = (noisy / self.softness).softmax(dim=-1)
        hard = F.one_hot(noisy.argmax(dim=-1), self.entries).to(soft.dtype)
        # Forward the entry that was chosen, backward what a soft choice would have told.
        picked = (hard - soft.detach() + soft) if self.training else hard
        table = self.codes(torch.arange(G * self.entries, device=rows.device))
        table = table.view(G, self.entries, -1)
        return torch.einsum("cgv,gvd->cgd", picked.to(table.dtype), table).flatten(1), likely


class Contrast(nn.Module):
    """Masks, codes, and the comparison of both."""

    def __init__(self, objective: ContrastConfig, encoder: AudioEncoderConfig, layers: Layers):
        super().__init__()
        self.diversity = objective.diversity
        self.masker = Masker(encoder, objective.width, layers)
        self.quantizer = Quantizer(objective, encoder.width, layers)
        self.target: Any = layers.linear(objective.code_width, objective.width, init=normal(0.05))

    def forward(self, encoder: Any, spans: ContrastedSounds) -> Loss:
        """Nats of telling each masked row's code from others; `total` has diversity besides."""
        rows = encoder.rows(spans.whole)
        codes, likely = self.quantizer(rows.index_select(0, spans.rows))
        targets = self.target(codes)
        context = self.masker(encoder, rows, spans)
        terms = contrastive(context, targets, spans.negatives, same_codes(codes, spans.negatives))
        unused = self.diversity * len(terms) * unevenness(likely)
        return Loss(terms.sum() + unused, terms.detach())


def same_codes(codes: Float[Tensor, "C D"], negatives: Int64[Tensor, "C n"]) -> Bool[Tensor, "C n"]:
    """Which of the others have the very code, and so are none to be told from."""
    return (codes[negatives] == codes[:, None]).all(dim=-1)


def contrastive(
    context: Float[Tensor, "C D"],
    targets: Float[Tensor, "C D"],
    negatives: Int64[Tensor, "C n"],
    is_same: Bool[Tensor, "C n"],
) -> Float[Tensor, "C"]:
    """Nats of choosing each row's own target among it and those of others, by cosines."""
    context, targets = F.normalize(context.float(), dim=-1), F.normalize(targets.float(), dim=-1)
    own = (context * targets).sum(dim=-1, keepdim=True)
    others = torch.einsum("cd,cnd->cn", context, targets[negatives])
    others = others.masked_fill(is_same, float("-inf"))
    scores = torch.cat([own, others], dim=-1) / TEMPERATURE
    return scores.logsumexp(dim=-1) - scores[:, 0]


def unevenness(likely: Float[Tensor, "C g v"]) -> Float[Tensor, ""]:
    """0 where all entries are used alike, 1 and less where few are."""
    C, G, V = likely.shape
    if not C:
        return likely.sum()
    mean = likely.mean(dim=0)
    perplexity = torch.exp(-torch.special.xlogy(mean, mean).sum(dim=-1)).sum()
    return (G * V - perplexity) / (G * V)


def _uniform(weight: Tensor, generator: torch.Generator) -> None:
    weight.uniform_(0.0, 1.0, generator=generator)
