"""The layers a model is built of, behind one protocol so that they can be sharded when built.

`DenseLayers` keeps every weight whole. A tensor-parallel implementation offers the same protocol
with weights split over ranks; nothing else in `model` has to know.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import torch
from torch import Generator, Tensor, nn

Initializer = Callable[[Tensor, Generator], None]
"""Fills a whole (unsplit) weight from a generator."""


def normal(std: float) -> Initializer:
    """Zero-mean normal weights."""

    def fill(weight: Tensor, generator: Generator) -> None:
        weight.normal_(0.0, std, generator=generator)

    return fill


def xavier(gain: float = 1.0) -> Initializer:
    """Xavier-normal weights [out, in] with a gain."""

    def fill(weight: Tensor, generator: Generator) -> None:
        fan_out, fan_in = weight.shape
        weight.normal_(0.0, gain * math.sqrt(2.0 / (fan_in + fan_out)), generator=generator)

    return fill


class Layers(Protocol):
    """What a model asks for when it is built."""

    def column(self, in_features: int, out_features: int, *, init: Initializer) -> nn.Module:
        """Linear layer [.., in] -> [.., out] whose outputs may be split over ranks."""
        ...

    def row(self, in_features: int, out_features: int, *, init: Initializer) -> nn.Module:
        """Linear layer [.., in] -> [.., out] whose inputs may be split over ranks."""
        ...

    def embedding(self, num_embeddings: int, width: int, *, init: Initializer) -> nn.Embedding:
        """Lookup table [num, width] whose rows may be split over ranks."""
        ...

    def norm(self, width: int) -> nn.Module:
        """Layer norm over the last dim."""
        ...


class DenseLinear(nn.Linear):
    """A whole linear layer."""

    def __init__(self, in_features: int, out_features: int, init: Initializer):
        self.init = init
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Leave the weights to `initialize`."""


class DenseEmbedding(nn.Embedding):
    """A whole lookup table."""

    def __init__(self, num_embeddings: int, width: int, init: Initializer):
        self.init = init
        super().__init__(num_embeddings, width)

    def reset_parameters(self) -> None:
        """Leave the weights to `initialize`."""


class DenseLayers:
    """Layers that keep every weight whole on every rank."""

    def column(self, in_features: int, out_features: int, *, init: Initializer) -> DenseLinear:
        """A whole linear layer."""
        return DenseLinear(in_features, out_features, init)

    def row(self, in_features: int, out_features: int, *, init: Initializer) -> DenseLinear:
        """A whole linear layer."""
        return DenseLinear(in_features, out_features, init)

    def embedding(self, num_embeddings: int, width: int, *, init: Initializer) -> DenseEmbedding:
        """A whole lookup table."""
        return DenseEmbedding(num_embeddings, width, init)

    def norm(self, width: int) -> nn.LayerNorm:
        """A layer norm."""
        return nn.LayerNorm(width)


@torch.no_grad()
def initialize(module: nn.Module, *, seed: int) -> None:
    """Fill every weight from its own stream, a pure function of (seed, logical name).

    So a weight starts the same whatever else the model holds, in whatever order it is built:
    a GPT and the semi-causal model around it share their decoder's first weights.
    """
    for name, child in cast(Iterator[tuple[str, nn.Module]], module.named_modules()):
        init = cast(Initializer | None, getattr(child, "init", None))
        if init is None:
            continue
        weight, bias = cast(Tensor, child.weight), getattr(child, "bias", None)
        digest = hashlib.sha256(f"{seed}/{name}.weight".encode()).digest()
        init(weight, Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
        if isinstance(bias, Tensor):
            bias.zero_()
