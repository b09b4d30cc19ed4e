"""Connectors carry an encoder's vectors into the decoder's width."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from model.config import Config
from model.decoder import EMBEDDING_STD
from model.layers import Layers, normal, xavier


class LinearConnectorConfig(Config):
    """One linear layer, as in the language-only model (MetaLM §3.2)."""

    kind: Literal["linear"] = "linear"
    num_layers: ClassVar[int] = 1


class MlpConnectorConfig(Config):
    """A feed-forward net, as in the vision-language model (MetaLM §4.2: three layers)."""

    kind: Literal["mlp"]
    num_layers: Annotated[int, Field(ge=2, le=2**12)] = 3


ConnectorConfig = Annotated[LinearConnectorConfig | MlpConnectorConfig, Field(discriminator="kind")]


def layer_sizes(config: ConnectorConfig, E: int, H: int) -> list[tuple[int, int]]:
    """Widths that each layer of a connector reads and writes."""
    return list(pairwise([E, *[H] * config.num_layers]))


class Connector(nn.Module):
    """Linear layers with GELU between them, [M, E] -> [M, H].

    The last layer starts so small that a span vector is as long as a token embedding.
    """

    def __init__(self, config: ConnectorConfig, E: int, H: int, layers: Layers):
        super().__init__()
        *hidden, (width, _) = layer_sizes(config, E, H)
        self.layers = nn.ModuleList(layers.linear(*sizes, init=xavier()) for sizes in hidden)
        self.layers.append(layers.linear(width, H, init=normal(EMBEDDING_STD / width**0.5)))

    def forward(self, vectors: Float[Tensor, "M E"]) -> Float[Tensor, "M H"]:
        """Carry encoder vectors to decoder inputs (before the decoder's embedding scale)."""
        *hidden, last = self.layers
        for layer in hidden:
            vectors = F.gelu(layer(vectors))
        return last(vectors)
