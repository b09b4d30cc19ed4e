"""In what blocks of one kind differ from those of another."""

from dataclasses import dataclass
from typing import Literal

from model.layers import NORM_EPSILON, NormLayer

NormKind = Literal["deepnorm", "pre", "post"]
"""Where a block's norms lie: behind residuals that DeepNorm scales, before each branch, or behind
plain residuals."""

Activation = Literal["gelu", "gelu_tanh", "swiglu"]
"""Of a decoder's feed-forward: GELU, its approximation by a tanh, or SiLU of a gate
(2002.05202)."""

AnyActivation = Activation | Literal["quick_gelu"]
"""Besides, GELU's approximation by a sigmoid, which CLIP has."""

Biases = Literal["all", "qkv", "none"]
"""Which linear layers of a block have one."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What a block is made of, besides its sizes.

    Attributes:
        norm: where its norms lie.
        norm_layer: what they are.
        norm_epsilon: what keeps them from dividing by zero.
        activation: of the feed-forward.
        biases: which linear layers have one.
        kv_heads: G, groups of heads that share keys and values; None: each has its own.
        head_width: D; None: width / heads.
        layer_scale: what the learned factors of each branch's channels start from (CaiT,
            2103.17239); None: there are none.
    """

    norm: NormKind = "deepnorm"
    norm_layer: NormLayer = "layer_norm"
    norm_epsilon: float = NORM_EPSILON
    activation: AnyActivation = "gelu"
    biases: Biases = "all"
    kv_heads: int | None = None
    head_width: int | None = None
    layer_scale: float | None = None


USUAL_STYLE = Style()
"""The paper's."""
