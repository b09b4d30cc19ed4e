"""Connectors carry an encoder's vectors into the decoder's width."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from model.batch import PackedSpans
from model.config import Config
from model.decoder import EMBEDDING_STD
from model.encoders.protocol import EncoderKind, SpanLoad
from model.layers import Layers, normal, xavier
from model.recompute import Recompute


class Product(NamedTuple):
    """A product with a weight, [rows, inner] x [inner, outer]."""

    rows: float
    inner: int
    outer: int
    split: Literal["whole", "inner", "outer"] = "whole"
    """Which side of the weight the ranks of a tensor group share."""


class ConnectorKind(Config):
    """The configuration of a kind of connector: what it is before it is built."""

    kind: Any
    """Its name, which no other has."""

    @property
    def item_slots(self) -> int | None:
        """Decoder slots of an item, whatever its size; None where each vector takes one."""
        return None

    @abstractmethod
    def build(
        self, encoder: EncoderKind, H: int, *, layers: Layers, recompute: Recompute
    ) -> nn.Module:
        """A module that carries vectors [M, E] of `PackedSpans` to decoder inputs [_, H].

        It has no first values yet.

        Args:
            encoder: what stands before it.
            H: width of the decoder.
            layers: where weights come from.
            recompute: activations that are computed again in the backward.
        """

    @abstractmethod
    def products(self, encoder: EncoderKind, H: int, load: SpanLoad) -> Sequence[Product]:
        """Its products in a forward on these spans."""

    def pairs(self, load: SpanLoad) -> float:
        """Pairs of rows that attend to each other in all its layers, padding included."""
        return 0.0

    def tensor_sizes(self, encoder: EncoderKind) -> dict[str, int]:
        """Sizes that a tensor degree must divide, by key."""
        return {}


class _Linear(ConnectorKind):
    """Linear layers with GELU between them."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """How many."""

    def sizes(self, E: int, H: int) -> list[tuple[int, int]]:
        """Widths that each layer reads and writes."""
        return list(pairwise([E, *[H] * self.depth]))

    def build(
        self, encoder: EncoderKind, H: int, *, layers: Layers, recompute: Recompute
    ) -> "Connector":
        """The layers; they compute nothing again."""
        return Connector(self.sizes(encoder.width, H), layers)

    def products(self, encoder: EncoderKind, H: int, load: SpanLoad) -> Sequence[Product]:
        """One a layer."""
        return [Product(load.vectors, *each) for each in self.sizes(encoder.width, H)]


class LinearConnectorConfig(_Linear):
    """One linear layer, as in the language-only model (MetaLM §3.2)."""

    kind: Literal["linear"] = "linear"

    @property
    def depth(self) -> int:
        """One."""
        return 1


class MlpConnectorConfig(_Linear):
    """A feed-forward net, as in the vision-language model (MetaLM §4.2: three layers)."""

    kind: Literal["mlp"]
    num_layers: Annotated[int, Field(ge=2, le=2**12)] = 3

    @property
    def depth(self) -> int:
        """As configured."""
        return self.num_layers


class Connector(nn.Module):
    """Linear layers with GELU between them, [M, E] -> [M, H].

    The last layer starts so small that a span vector is as long as a token embedding.

    Args:
        sizes: widths that each layer reads and writes.
        layers: where weights come from.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], layers: Layers):
        super().__init__()
        *hidden, (width, H) = sizes
        self.layers = nn.ModuleList(layers.linear(*each, init=xavier()) for each in hidden)
        self.layers.append(last_layer(width, H, layers))

    def forward(self, vectors: Float[Tensor, "M E"], spans: PackedSpans) -> Float[Tensor, "M H"]:
        """Carry encoder vectors to decoder inputs (before the decoder's embedding scale)."""
        *hidden, last = self.layers
        for layer in hidden:
            vectors = F.gelu(layer(vectors))
        return last(vectors)


def last_layer(width: int, H: int, layers: Layers) -> nn.Module:
    """What ends a connector: it makes of normed channels vectors as long as a token embedding."""
    return layers.linear(width, H, init=normal(EMBEDDING_STD / width**0.5))
