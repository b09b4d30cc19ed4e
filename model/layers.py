"""The layers a model is built of, in one class so that they can be sharded when built.

A tensor-parallel kind of `Layers` splits weights over ranks; nothing else in `model` has to know.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from model.region import Region

Initializer = Callable[[Tensor, Generator], None]
"""Fills a whole (unsplit) weight from a generator."""

NormLayer = Literal["layer_norm", "rms_norm"]
NORM_EPSILON = 1e-5


def normal(std: float) -> Initializer:
    """Zero-mean normal weights."""

    def fill(weight: Tensor, generator: Generator) -> None:
        weight.normal_(0.0, std, generator=generator)

    return fill


def constant(value: float) -> Initializer:
    """Weights that are all the same."""

    def fill(weight: Tensor, generator: Generator) -> None:
        weight.fill_(value)

    return fill


def xavier(gain: float = 1.0) -> Initializer:
    """Xavier-normal weights [out, in] with a gain."""

    def fill(weight: Tensor, generator: Generator) -> None:
        fan_out, fan_in = weight.shape
        weight.normal_(0.0, gain * math.sqrt(2.0 / (fan_in + fan_out)), generator=generator)

    return fill


def placement(parameter: Tensor) -> Region:
    """What this rank holds of a parameter: all of it, unless its layer said otherwise.

    Padding rows of a rank's weight lie beyond its box, at the end of dim 0.
    """
    if is_split(parameter):
        return cast(Any, parameter).placement
    # ZeRO-3 empties a parameter between its uses and keeps the shape aside.
    return Region.whole(tuple(getattr(parameter, "ds_shape", parameter.shape)))


def is_split(parameter: Tensor) -> bool:
    """Whether the ranks of a tensor group hold different parts of this parameter."""
    return getattr(parameter, "placement", None) is not None


def logical_name(name: str, parameter: Tensor) -> str:
    """Name of a parameter that is the same in every layout; a tied copy has the first's name."""
    return getattr(parameter, "logical_name", name)


@dataclass(frozen=True, kw_only=True)
class VocabularyShard:
    """A rank's part of the vocabulary, and what joins the ranks' parts.

    Attributes:
        first: its first token.
        size: how many tokens are real; rows beyond are padding.
        maximum: elementwise maximum over the ranks.
        sum: elementwise sum over the ranks.
    """

    first: int
    size: int
    maximum: Callable[[Tensor], Tensor]
    sum: Callable[[Tensor], Tensor]


class Linear(nn.Linear):
    """A linear layer whose values are left to `initialize`.

    Attributes:
        product: what computes it from rows, weight and bias; None for torch's own product.
        skip_bias_add: whether the step behind it adds the bias; None where that cannot be asked of
            it, as of this one.
    """

    product: nn.Module | None
    skip_bias_add: bool | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        init: Initializer,
        device: str | None,
        *,
        bias: bool = True,
    ):
        self.init = init
        super().__init__(in_features, out_features, bias=bias, device=device)
        self.product = None

    def reset_parameters(self) -> None:
        """Nothing yet."""

    def forward(self, input: Tensor) -> Tensor:
        """[.., in] -> [.., out]."""
        if self.product is None:
            return F.linear(input, self.weight, self.bias)
        return self.product(input, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A lookup table whose values are left to `initialize`."""

    def __init__(self, num_rows: int, width: int, init: Initializer, device: str | None):
        self.init = init
        super().__init__(num_rows, width, device=device)

    def reset_parameters(self) -> None:
        """Nothing yet."""


class Scale(nn.Module):
    """A factor for each channel, whose values are left to `initialize`."""

    def __init__(self, width: int, init: Initializer, device: str | None):
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.empty(width, device=device))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[.., width] -> [.., width]; the bias is what the layer before has left."""
        return (x if bias is None else x + bias) * self.weight


class Layers:
    """The layers that a model asks for when it is built: every weight whole, every row on one rank.

    A tensor-parallel kind overrides those that it splits.

    Attributes:
        sequence_parallel: whether blocks work on a part of the rows.
        device: where weights are made; None: on torch's default device.
    """

    sequence_parallel: bool = False
    device: str | None = None

    def column(
        self, in_features: int, out_features: int, *, init: Initializer, bias: bool = True
    ) -> nn.Module:
        """Linear layer [.., in] -> [.., out] whose outputs may be split over ranks."""
        return self.linear(in_features, out_features, init=init, bias=bias)

    def row(
        self, in_features: int, out_features: int, *, init: Initializer, bias: bool = True
    ) -> nn.Module:
        """Linear layer [.., in] -> [.., out] whose inputs may be split over ranks."""
        return self.linear(in_features, out_features, init=init, bias=bias)

    def linear(
        self, in_features: int, out_features: int, *, init: Initializer, bias: bool = True
    ) -> nn.Module:
        """Linear layer [.., in] -> [.., out], whole on every rank."""
        return Linear(in_features, out_features, init, self.device, bias=bias)

    def vocabulary(self, num_tokens: int, width: int, *, init: Initializer) -> nn.Module:
        """Lookup table [num, width] whose rows may be split over ranks; `weight` is its part."""
        return self.table(num_tokens, width, init=init)

    def table(self, num_rows: int, width: int, *, init: Initializer) -> nn.Module:
        """Small lookup table [num, width], whole on every rank."""
        return Embedding(num_rows, width, init, self.device)

    def norm(
        self, width: int, *, kind: NormLayer = "layer_norm", epsilon: float = NORM_EPSILON
    ) -> nn.Module:
        """Norm over the last dim; its values start as ones and zeros."""
        if kind == "rms_norm":
            return nn.RMSNorm(width, eps=epsilon, device=self.device)
        return nn.LayerNorm(width, eps=epsilon, device=self.device)

    def scale(self, width: int, *, start: float) -> nn.Module:
        """A factor for each channel of the last dim, whole on every rank."""
        return Scale(width, constant(start), self.device)

    def dropout(self, share: float) -> nn.Module:
        """Zeroes a share of what blocks pass on, in training."""
        return nn.Dropout(share) if share else nn.Identity()

    def shard(self, num_tokens: int) -> VocabularyShard | None:
        """This rank's part of a vocabulary, None if it holds all of it."""
        return None

    def share(self, values: Tensor) -> Tensor:
        """This rank's part of the last dim, as `column` splits it."""
        return values

    def enter(self, rows: Tensor) -> Tensor:
        """Whole rows [R, H], the same on every rank, to what the blocks work on."""
        return rows

    def leave(self, rows: Tensor) -> Tensor:
        """Back to whole rows, for a head that is split over the vocabulary."""
        return rows


@torch.no_grad()
def initialize(module: nn.Module, *, seed: int) -> None:
    """Fill every weight from its own stream, a pure function of (seed, logical name).

    So a weight starts the same whatever else the model holds, in whatever order it is built, and
    however it is split: a GPT and the semi-causal model around it share their decoder's first
    weights, and so do all layouts. Whole weights are drawn one at a time, and a rank keeps its box.
    """
    for name, child in cast(Iterator[tuple[str, nn.Module]], module.named_modules()):
        init = cast(Initializer | None, getattr(child, "init", None))
        if init is None:
            continue
        weight, bias = cast(Tensor, child.weight), getattr(child, "bias", None)
        digest = hashlib.sha256(
            f"{seed}/{logical_name(name + '.weight', weight)}".encode()
        ).digest()
        place = placement(weight)
        whole = torch.empty(place.shape) if is_split(weight) else weight
        init(whole, Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
        if is_split(weight):
            box = place.take(whole)
            weight.zero_()  # padding rows
            weight[: box.shape[0]] = box
        if isinstance(bias, Tensor):
            bias.zero_()
