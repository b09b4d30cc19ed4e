"""One transformer block, with DeepNorm or pre-norm residuals, around any kind of attention."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.layers import Initializer, Layers, normal, xavier
from model.recompute import Recompute, run
from model.steady import ROWS_MULTIPLE, steady_rows
from model.style import USUAL_STYLE, AnyActivation, NormKind, Style

PRE_NORM_STD = 0.02


def deepnorm_constants(num_layers: int) -> tuple[float, float]:
    """Residual scale alpha and initial gain beta of a stack without cross-attention.

    Source: DeepNet, fig. 2: alpha = (2N)^(1/4), beta = (8N)^(-1/4), for encoder-only and
    decoder-only stacks alike.
    """
    return (2 * num_layers) ** 0.25, (8 * num_layers) ** -0.25


class FeedForward(nn.Module):
    """Linear, GELU, linear; or, with a gate, SwiGLU."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        layers: Layers,
        up: Initializer,
        down: Initializer,
        style: Style = USUAL_STYLE,
    ):
        super().__init__()
        has_bias = style.biases == "all"
        self.gate: Any = None
        if style.activation == "swiglu":
            self.gate = layers.column(width, hidden, init=up, bias=has_bias)
        self.up = layers.column(width, hidden, init=up, bias=has_bias)
        self.down = layers.row(hidden, width, init=down, bias=has_bias)
        self.activation: AnyActivation = style.activation

    def forward(self, x: Tensor, steps: "Steps") -> Tensor:
        """[.., width] -> [.., width], but for the bias that `down` may leave."""
        if self.gate is None:
            hidden = steps.activate(self.up(x), bias_left(self.up), self.activation)
        else:
            hidden = steps.gate(self.gate(x), self.up(x), bias_left(self.gate), bias_left(self.up))
        return self.down(hidden)


def bias_left(layer: Any) -> Tensor | None:
    """The bias that a layer leaves to the step behind it, None if it has added its bias itself."""
    return layer.bias if getattr(layer, "skip_bias_add", None) else None


class Block(nn.Module):
    """Attention and feed-forward, each with a residual and a norm.

    DeepNorm: x <- LN(alpha x + f(x)). Post-norm: the same, alpha being 1. Pre-norm:
    x <- x + f(LN(x)).

    Args:
        width: H of a decoder, E of an encoder.
        heads: attention heads.
        hidden: feed-forward width.
        attention: which kind to build.
        layers: where weights come from.
        style: kinds of residual, norm, feed-forward and heads.
        depth: layers of the full stack, from which DeepNorm's constants follow.
        dropout: share of each branch that is dropped in training.
        recompute: what is computed again in the backward.
        two_kinds: whether rows of two kinds go through it, which share attention and norms and
            have a feed-forward net each; `SpanGrid.first_rows` tells them apart.

    Attributes:
        steps: the functions that compute it.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        attention: type[Attention],
        layers: Layers,
        style: Style,
        depth: int,
        dropout: float = 0.0,
        recompute: Recompute = "none",
        two_kinds: bool = False,
    ):
        super().__init__()
        self.norm_kind: NormKind = style.norm
        self.dropout = layers.dropout(dropout)
        self.recompute: Recompute = recompute
        self.steps = Steps()
        self.alpha, beta = deepnorm_constants(depth)
        if style.norm == "deepnorm":
            query_key, inner, out = xavier(), xavier(beta), xavier(beta)
        else:
            query_key = inner = normal(PRE_NORM_STD)
            out = normal(PRE_NORM_STD / math.sqrt(2 * depth))
            self.alpha = 1.0
        self.attention = attention(
            width,
            heads,
            layers=layers,
            query_key_init=query_key,
            value_init=inner,
            out_init=out,
            style=style,
            recompute=recompute,
        )
        norm = partial(layers.norm, width, kind=style.norm_layer, epsilon=style.norm_epsilon)
        self.attention_norm = norm()
        net = partial(FeedForward, width, hidden, layers=layers, up=inner, down=out, style=style)
        self.feed_forward = net()
        self.other_feed_forward = net() if two_kinds else None
        self.feed_forward_norm = norm()
        self.attention_scale: Any = None
        self.feed_forward_scale: Any = None
        if style.layer_scale is not None:
            self.attention_scale = layers.scale(width, start=style.layer_scale)
            self.feed_forward_scale = layers.scale(width, start=style.layer_scale)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """[.., width] -> [.., width]; `context` goes to the attention."""
        return self.steps.whole(self, x, *context)


def compute(block: Block, x: Tensor, *context: Any) -> Tensor:
    """A whole block."""
    steps, attention = block.steps, block.attention
    if block.norm_kind != "pre":
        branch = _scaled(block, block.attention_scale, attention(x, *context), attention.out)
        x = steps.post_norm(block, block.attention_norm, x, *branch)
        branch = _scaled(block, block.feed_forward_scale, *_hidden(block, x, *context))
        return steps.post_norm(block, block.feed_forward_norm, x, *branch)
    mixed = attention(block.attention_norm(x), *context)
    branch = _scaled(block, block.attention_scale, mixed, attention.out)
    x, normed = steps.pre_norm(block, block.feed_forward_norm, x, *branch)
    branch = _scaled(block, block.feed_forward_scale, *_hidden(block, normed, *context))
    return steps.join(block, x, *branch)


def _hidden(block: Block, x: Tensor, *context: Any) -> tuple[Tensor, nn.Module | None]:
    """What feed-forward nets make of rows, and the layer whose bias is still to be added."""
    if block.other_feed_forward is None:
        return block.feed_forward(x, block.steps), block.feed_forward.down
    first = context[0].first_rows
    nets = (block.feed_forward, x[:first]), (block.other_feed_forward, x[first:])
    return torch.cat([_with_bias(net, rows, block.steps) for net, rows in nets]), None


def _with_bias(net: FeedForward, rows: Tensor, steps: "Steps") -> Tensor:
    """What one net makes of its rows; of a few more, where shapes are to repeat."""
    count = len(rows)
    more = steady_rows(count, like=rows, room=count + ROWS_MULTIPLE) - count
    hidden = net(F.pad(rows, (0, 0, 0, more)) if more else rows, steps)
    bias = bias_left(net.down)
    return (hidden if bias is None else hidden + bias)[:count]


def _scaled(
    block: Block, scale: nn.Module | None, branch: Tensor, last: nn.Module | None
) -> tuple[Tensor, Tensor | None]:
    """A branch behind its dropout and its factors, and the bias that is still to be added."""
    branch, bias = block.dropout(branch), bias_left(last)
    return (branch, bias) if scale is None else (scale(branch, bias), None)


def activate(x: Tensor, bias: Tensor | None, kind: AnyActivation = "gelu") -> Tensor:
    """GELU of what a layer computed, exact or nearly so."""
    x = x if bias is None else x + bias
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def gate(gates: Tensor, x: Tensor, gates_bias: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a layer computed, through its gates."""
    gates = gates if gates_bias is None else gates + gates_bias
    return F.silu(gates) * (x if bias is None else x + bias)


def join(block: Block, x: Tensor, branch: Tensor, bias: Tensor | None) -> Tensor:
    """The residual and its branch, added."""
    if bias is not None:
        branch = branch + bias
    return torch.add(branch, x, alpha=block.alpha)


def post_norm(
    block: Block, norm: nn.Module, x: Tensor, branch: Tensor, bias: Tensor | None
) -> Tensor:
    """The norm of residual and branch."""
    return norm(join(block, x, branch, bias))


def pre_norm(
    block: Block, norm: nn.Module, x: Tensor, branch: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Residual and branch, and the norm of them that the next branch reads."""
    x = join(block, x, branch, bias)
    return x, norm(x)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The functions that a block computes; in the place of each, one that is compiled may stand.

    Attributes:
        whole: all of a block.
        activate: between the two linear layers of the feed-forward.
        gate: the same, where there is a gate.
        join: behind a branch.
        post_norm: behind a branch, with DeepNorm.
        pre_norm: behind the first branch, with pre-norm.
    """

    whole: Callable[..., Tensor] = compute
    activate: Callable[..., Tensor] = activate
    gate: Callable[..., Tensor] = gate
    join: Callable[..., Tensor] = join
    post_norm: Callable[..., Tensor] = post_norm
    pre_norm: Callable[..., tuple[Tensor, Tensor]] = pre_norm


def run_block(block: nn.Module, x: Tensor, *context: Any) -> Tensor:
    """A block's output; with full recomputation the block's input is all that is kept.

    Outside of the block, so that whatever hooks its call (ZeRO-3 gathers weights there) runs again
    when it is computed again.
    """
    return run(block, x, *context, again=block.recompute == "full")
