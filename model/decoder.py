"""The causal decoder: the universal task layer that every modality speaks through."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int32, Int64
from pydantic import Field
from torch import Tensor, nn

from model.attention import CausalSelfAttention
from model.block import Block, run_block
from model.config import (
    Config,
    Depth,
    Dropout,
    Heads,
    HiddenWidth,
    PathText,
    Tokens,
    Vocabulary,
    Width,
)
from model.layers import NORM_EPSILON, Layers, NormLayer, normal
from model.loss import LinearCrossEntropy, LossKernel
from model.reading import Reading
from model.recompute import Recompute
from model.rope import Llama3Scaling, RopeScaling, rotations
from model.style import Activation, Biases, NormKind, Style

EMBEDDING_STD = 0.02
"""GPT-2's. The first loss exceeds ln(V) by about H * std^2 / 2, and by more where a state still
resembles its own token, whose logit is then up to H * std (docs/decisions/0002)."""

EMBEDDING_SCALE = 1 / EMBEDDING_STD
"""Brings inputs to unit variance at every width. The code line's sqrt(H), 45 at the paper's width,
leaves tokens quieter than positions where H is small (docs/decisions/0002)."""


Positions = Literal["sinusoidal", "learned", "rope"]
"""How slots tell their place: sinusoids or a table added to inputs, or queries and keys turned."""

TIED_NAME = "decoder.embedding.weight"
"""Logical name of the token embedding, which a tied head on another stage has a copy of."""


class DecoderConfig(Config):
    """Shape of the decoder."""

    vocabulary: Vocabulary
    """Tokens in the vocabulary, special ones included."""
    width: Width
    """H."""
    num_layers: Depth
    heads: Heads
    feed_forward: HiddenWidth
    """F, usually 4 H."""
    max_tokens: Annotated[Tokens, Field(ge=2)]
    """Longest sequence in decoder slots."""
    norm: NormKind = "deepnorm"
    """`deepnorm` as in the paper, or `pre`."""
    dropout: Dropout = 0.0
    """Share of each residual branch dropped in training; the paper uses none."""
    tied_head: bool = True
    """Whether the head is the token embedding, as in the paper, or a matrix of its own."""
    loss_chunk_tokens: Tokens | None = None
    """Scored slots whose logits exist at once; default: 256 on CPUs, on GPUs as many as have 1 GiB
    of logits, and 4,096 at least."""
    loss_kernel: LossKernel = "auto"
    """What makes loss and gradient of logits on GPUs: `triton` in one pass, `torch` in about ten;
    `auto` is triton where it works. On CPUs torch does."""
    positions: Positions = "sinusoidal"
    """`sinusoidal` as in the paper; `learned` (GPT-2) or `rope` (Llama, Qwen2) for decoders that
    come from elsewhere."""
    rope_theta: Annotated[float, Field(gt=1, le=1e12)] = 10_000.0
    """Longest wavelength of `rope`, over 2 pi."""
    rope_scaling: RopeScaling | None = None
    """What stretches the wavelengths of `rope`: `{kind: llama3, factor: 8, original_tokens: 8192}`,
    or `{kind: linear, factor: 2}`."""
    norm_layer: NormLayer = "layer_norm"
    """`rms_norm` in Llama and Qwen2."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1)] = NORM_EPSILON
    """What is added to the variance that norms divide by."""
    activation: Activation = "gelu"
    """Of the feed-forward: `gelu`, `gelu_tanh` (GPT-2), or `swiglu` with a gate of its own."""
    biases: Biases = "all"
    """Of the linear layers of blocks: `all`, `qkv` alone (Qwen2), or `none` (Llama)."""
    kv_heads: Heads | None = None
    """Groups of heads that share their keys and values; default: each head has its own."""
    head_width: Annotated[int, Field(ge=2, le=2**12)] | None = None
    """Width of one head; default: width / heads."""
    embedding_scale: Annotated[float, Field(gt=0, le=1e6)] = EMBEDDING_SCALE
    """What token embeddings and span vectors are multiplied by; 1 in decoders from elsewhere."""

    init_from: PathText | None = None
    """Checkpoint whose decoder supplies the first weights."""

    @property
    def num_kv_heads(self) -> int:
        """G."""
        return self.kv_heads or self.heads

    @property
    def channels(self) -> int:
        """D, of one head."""
        return self.head_width or self.width // self.heads

    @property
    def style(self) -> Style:
        """Of its blocks."""
        return Style(
            norm=self.norm,
            norm_layer=self.norm_layer,
            norm_epsilon=self.norm_epsilon,
            activation=self.activation,
            biases=self.biases,
            kv_heads=self.kv_heads,
            head_width=self.head_width,
        )

    def faults(self, path: str) -> Iterator[str]:
        """Sizes that do not fit each other, each with its key; `path` is that of this section."""
        if self.head_width is None and self.width % self.heads:
            yield f"{path}.heads: {self.heads} heads do not divide width {self.width}"
        elif self.positions == "rope" and self.channels % 2:
            yield (
                f"{path}.positions: rope turns pairs of channels and heads have {self.channels}: "
                f"choose an even {path}.head_width"
            )
        scaling = self.rope_scaling
        if scaling is not None and self.positions != "rope":
            yield f"{path}.rope_scaling: positions are {self.positions}: leave it out"
        if isinstance(scaling, Llama3Scaling) and scaling.low_factor >= scaling.high_factor:
            yield (
                f"{path}.rope_scaling.high_factor: {scaling.high_factor:g} is not above low_factor "
                f"({scaling.low_factor:g}): raise it"
            )
        if self.heads % self.num_kv_heads:
            yield (
                f"{path}.kv_heads: {self.kv_heads} groups do not divide {self.heads} heads: choose "
                "a divisor"
            )


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of decoder layers that one pipeline stage computes in one go.

    Attributes:
        first_layer: its first layer.
        last_layer: one past its last layer.
        is_first: it embeds tokens and reads spans.
        is_last: it computes the loss.
    """

    first_layer: int
    last_layer: int
    is_first: bool
    is_last: bool


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

    A pipeline stage holds some pieces of it. Names are those of the whole decoder, whatever is
    held. Blocks work on rows, sequence after sequence: [B*S, H], or a rank's part of them.

    Source: MetaLM §2.2, §3.2.

    Args:
        config: shape of the whole decoder.
        layers: where weights come from.
        pieces: what to hold of it.
        recompute: activations that are computed again in the backward.
    """

    positions: Any

    def __init__(
        self,
        config: DecoderConfig,
        layers: Layers,
        *,
        pieces: Sequence[Piece],
        recompute: Recompute = "none",
    ):
        super().__init__()
        self.config = config
        self.layers = layers
        initializer = normal(EMBEDDING_STD)
        self.embedding: Any = None
        if any(piece.is_first for piece in pieces):
            self.embedding = layers.vocabulary(config.vocabulary, config.width, init=initializer)
            if config.positions == "sinusoidal":
                positions = sinusoids(config.max_tokens, config.width)
                self.register_buffer("positions", positions, persistent=False)
            elif config.positions == "learned":
                self.positions = layers.table(config.max_tokens, config.width, init=initializer)
        self.blocks = nn.ModuleDict(
            {
                str(index): Block(
                    width=config.width,
                    heads=config.heads,
                    hidden=config.feed_forward,
                    attention=CausalSelfAttention,
                    layers=layers,
                    style=config.style,
                    depth=config.num_layers,
                    dropout=config.dropout,
                    recompute=recompute,
                )
                for piece in pieces
                for index in range(piece.first_layer, piece.last_layer)
            }
        )
        if any(piece.is_last for piece in pieces):
            # DeepNorm normalises after every branch, so its last block already ends in a norm.
            self.final_norm = nn.Identity()
            if config.norm == "pre":
                self.final_norm = layers.norm(
                    config.width, kind=config.norm_layer, epsilon=config.norm_epsilon
                )
            is_copy = config.tied_head and self.embedding is None
            table: Any = self.embedding
            if is_copy or not config.tied_head:
                table = layers.vocabulary(config.vocabulary, config.width, init=initializer)
            if is_copy:
                table.weight.logical_name = TIED_NAME
            self.head = LinearCrossEntropy(
                table.weight,
                chunk_tokens=config.loss_chunk_tokens,
                kernel=config.loss_kernel,
                shard=layers.shard(config.vocabulary),
                init=None if table is self.embedding else initializer,
            )

    def embed(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... H"]:
        """Token embeddings, not yet scaled or positioned."""
        assert self.embedding is not None, "this piece does not begin the decoder"
        return self.embedding(tokens)

    def enter(
        self,
        inputs: Float[Tensor, "B S H"],
        *,
        positions: Int64[Tensor, "P S"] | None = None,
    ) -> Float[Tensor, "R H"]:
        """Rows for the first block: inputs scaled, and told their positions.

        Args:
            inputs: token embeddings or connector outputs, one a slot.
            positions: of each slot, where they do not run through; P is 1 where all sequences have
                the same.
        """
        scale = self.config.embedding_scale
        if self.config.positions == "rope":
            x = inputs * scale
        else:
            table = self.positions
            if self.config.positions == "learned":
                table = table.weight
            places = slice(inputs.shape[1]) if positions is None else positions
            x = torch.add(table[places].to(inputs.dtype), inputs, alpha=scale)
        return self.layers.enter(x.view(-1, x.shape[-1]))

    def turns(
        self,
        num_slots: int,
        device: torch.device,
        *,
        positions: Int64[Tensor, "P S"] | None = None,
    ) -> Float[Tensor, "2 P S 1 D"] | None:
        """By what the blocks turn queries and keys; None where positions turn none.

        Args:
            num_slots: S.
            device: where they are needed.
            positions: of each slot, where they do not run through.
        """
        if self.config.positions != "rope":
            return None
        if positions is None:
            positions = torch.arange(num_slots, device=device)[None]
        return rotations(
            positions,
            width=self.config.channels,
            theta=self.config.rope_theta,
            scaling=self.config.rope_scaling,
        )

    def run(
        self,
        rows: Float[Tensor, "R H"],
        piece: Piece,
        *,
        num_sequences: int,
        documents: Int32[Tensor, "N"] | None = None,
        turns: Float[Tensor, "2 P S 1 D"] | None = None,
        reading: Reading | None = None,
    ) -> Float[Tensor, "R H"]:
        """Rows after the blocks of a piece; slots see their own documents where these are given."""
        for index in range(piece.first_layer, piece.last_layer):
            context = (num_sequences, documents, turns)
            if reading is not None:
                context = (*context, reading, index)
            rows = run_block(self.blocks[str(index)], rows, *context)
        return rows

    def leave(self, rows: Float[Tensor, "R H"]) -> Float[Tensor, "R H"]:
        """Whole rows for the head."""
        return self.layers.leave(self.final_norm(rows))

    def forward(self, inputs: Float[Tensor, "B S H"]) -> Float[Tensor, "B S H"]:
        """States of all slots, ready for the head; needs the whole decoder.

        Args:
            inputs: token embeddings or connector outputs, one a slot.
        """
        turns = self.turns(inputs.shape[1], inputs.device)
        rows = self.enter(inputs)
        rows = self.run(rows, whole_piece(self.config), num_sequences=len(inputs), turns=turns)
        return self.leave(rows).view(inputs.shape)


def whole_piece(config: DecoderConfig) -> Piece:
    """The one piece of a decoder that is not cut."""
    return Piece(first_layer=0, last_layer=config.num_layers, is_first=True, is_last=True)
