"""One transformer block, with DeepNorm or pre-norm residuals, around either kind of attention."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import SelfAttention, query_key_value
from model.layers import Initializer, Layers, normal, xavier
from model.recompute import Recompute, run

NormKind = Literal["deepnorm", "pre"]

PRE_NORM_STD = 0.02


def deepnorm_constants(num_layers: int) -> tuple[float, float]:
    """Residual scale alpha and initial gain beta of a stack without cross-attention.

    Source: DeepNet, fig. 2: alpha = (2N)^(1/4), beta = (8N)^(-1/4), for encoder-only and
    decoder-only stacks alike.
    """
    return (2 * num_layers) ** 0.25, (8 * num_layers) ** -0.25


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(
        self, width: int, hidden: int, *, layers: Layers, up: Initializer, down: Initializer
    ):
        super().__init__()
        self.up = layers.column(width, hidden, init=up)
        self.down = layers.row(hidden, width, init=down)

    def forward(self, x: Tensor) -> Tensor:
        """[.., width] -> [.., width]."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and feed-forward, each with a residual and a norm.

    DeepNorm: x <- LN(alpha x + f(x)). Pre-norm: x <- x + f(LN(x)).

    Args:
        width: H of a decoder, E of an encoder.
        heads: attention heads.
        hidden: feed-forward width.
        attention: which of the two attentions to build.
        layers: where weights come from.
        norm: kind of residual.
        depth: layers of the full stack, from which DeepNorm's constants follow.
        dropout: share of each branch that is dropped in training.
        recompute: what is computed again in the backward.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        attention: type[SelfAttention],
        layers: Layers,
        norm: NormKind,
        depth: int,
        dropout: float = 0.0,
        recompute: Recompute = "none",
    ):
        super().__init__()
        self.norm_kind: NormKind = norm
        self.dropout = layers.dropout(dropout)
        self.recompute: Recompute = recompute
        self.alpha, beta = deepnorm_constants(depth)
        if norm == "deepnorm":
            query_key, inner, out = xavier(), xavier(beta), xavier(beta)
        else:
            query_key = inner = normal(PRE_NORM_STD)
            out = normal(PRE_NORM_STD / math.sqrt(2 * depth))
        self.attention = attention(
            width,
            heads,
            layers=layers,
            qkv_init=query_key_value(heads=heads, query_key=query_key, value=inner),
            out_init=out,
            recompute=recompute,
        )
        self.attention_norm = layers.norm(width)
        self.feed_forward = FeedForward(width, hidden, layers=layers, up=inner, down=out)
        self.feed_forward_norm = layers.norm(width)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """[.., width] -> [.., width]; `context` goes to the attention."""
        if self.norm_kind == "deepnorm":
            x = self.attention_norm(self._residual(x, self.attention(x, *context)))
            return self.feed_forward_norm(self._residual(x, self.feed_forward(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), *context))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def _residual(self, x: Tensor, branch: Tensor) -> Tensor:
        return torch.add(self.dropout(branch), x, alpha=self.alpha)


def run_block(block: nn.Module, x: Tensor, *context: Any) -> Tensor:
    """A block's output; with full recomputation the block's input is all that is kept.

    Outside of the block, so that whatever hooks its call (ZeRO-3 gathers weights there) runs again
    when it is computed again.
    """
    return run(block, x, *context, again=block.recompute == "full")
