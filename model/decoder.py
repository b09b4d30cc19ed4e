"""The causal decoder: the universal task layer that every modality speaks through."""

import math
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.attention import CausalSelfAttention, KeyValueCache
from model.block import Block, NormKind
from model.config import Config
from model.layers import Layers, normal
from model.loss import LinearCrossEntropy

EMBEDDING_STD = 0.02
"""GPT-2's; with unit-variance states the first loss exceeds ln(V) by about H * std^2 / 2."""

EMBEDDING_SCALE = 1 / EMBEDDING_STD
"""Brings inputs to unit variance at every width. The code line's sqrt(H), 45 at the paper's width,
leaves tokens quieter than positions where H is small (docs/decisions/0002)."""


class DecoderConfig(Config):
    """Shape of the decoder."""

    vocabulary: Annotated[int, Field(ge=8)]
    """Tokens in the vocabulary, special ones included."""
    width: Annotated[int, Field(ge=8)]
    """H."""
    num_layers: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    feed_forward: Annotated[int, Field(ge=8)]
    """F, usually 4 H."""
    max_tokens: Annotated[int, Field(ge=2)]
    """Longest sequence in decoder slots."""
    norm: NormKind = "deepnorm"
    """`deepnorm` as in the paper, or `pre`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each residual branch dropped in training; the paper uses none."""
    loss_chunk_tokens: Annotated[int, Field(ge=1)] = 256
    """Scored slots whose logits exist at once."""


def sinusoids(num_positions: int, width: int) -> Float[Tensor, "S H"]:
    """Absolute sinusoidal positions, sines in the first half of the width, cosines in the second.

    Source: Vaswani et al. §3.5, in the arrangement of the authors' code line.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10_000.0) / max(half - 1, 1)))
    angles = torch.arange(num_positions)[:, None] * frequencies[None, :]
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return table if width % 2 == 0 else torch.cat([table, table.new_zeros(num_positions, 1)], 1)


class Decoder(nn.Module):
    """Token embedding, causal blocks and a tied head that computes the loss.

    The embedding is drawn with a small std so that the first loss is ln(V), and scaled to unit
    variance on the way in so that positions do not drown it; span vectors take the same scale.

    Source: MetaLM §2.2, §3.2.
    """

    positions: Tensor

    def __init__(self, config: DecoderConfig, layers: Layers):
        super().__init__()
        self.config = config
        self.embedding = layers.embedding(
            config.vocabulary, config.width, init=normal(EMBEDDING_STD)
        )
        table = sinusoids(config.max_tokens, config.width)
        self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                width=config.width,
                heads=config.heads,
                hidden=config.feed_forward,
                attention=CausalSelfAttention,
                layers=layers,
                norm=config.norm,
                depth=config.num_layers,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        # DeepNorm normalises after every branch, so its last block already ends in a norm.
        self.final_norm = layers.norm(config.width) if config.norm == "pre" else nn.Identity()
        self.head = LinearCrossEntropy(self.embedding, chunk_tokens=config.loss_chunk_tokens)

    def embed(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... H"]:
        """Token embeddings, not yet scaled or positioned."""
        return self.embedding(tokens)

    def forward(
        self,
        inputs: Float[Tensor, "B S H"],
        *,
        start: int = 0,
        caches: list[KeyValueCache] | None = None,
    ) -> Float[Tensor, "B S H"]:
        """States of all slots, ready for the head.

        Args:
            inputs: token embeddings or connector outputs, one a slot.
            start: position of the first slot (beyond 0 only with caches).
            caches: one a block when generating.
        """
        S = inputs.shape[1]
        positions = self.positions[start : start + S].to(inputs.dtype)
        x = torch.add(positions, inputs, alpha=EMBEDDING_SCALE)
        for index, block in enumerate(self.blocks):
            x = block(x, caches[index]) if caches is not None else block(x)
        return self.final_norm(x)
