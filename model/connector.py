"""Connectors carry an encoder's vectors into the decoder's width."""

from typing import Annotated, Literal

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


class MlpConnectorConfig(Config):
    """A feed-forward net, as in the vision-language model (MetaLM §4.2: three layers)."""

    kind: Literal["mlp"]
    num_layers: Annotated[int, Field(ge=2)] = 3


ConnectorConfig = Annotated[LinearConnectorConfig | MlpConnectorConfig, Field(discriminator="kind")]


class Connector(nn.Module):
    """Linear layers with GELU between them, [M, E] -> [M, H].

    The last layer starts so small that a span vector is as long as a token embedding.
    """

    def __init__(
        self, config: LinearConnectorConfig | MlpConnectorConfig, E: int, H: int, layers: Layers
    ):
        super().__init__()
        num_layers = 1 if config.kind == "linear" else config.num_layers
        widths = [E, *(H for _ in range(num_layers - 1))]
        hidden = [layers.linear(width, H, init=xavier()) for width in widths[:-1]]
        last = layers.linear(widths[-1], H, init=normal(EMBEDDING_STD / widths[-1] ** 0.5))
        self.layers = nn.ModuleList([*hidden, last])

    def forward(self, vectors: Float[Tensor, "M E"]) -> Float[Tensor, "M H"]:
        """Carry encoder vectors to decoder inputs (before the decoder's embedding scale)."""
        *hidden, last = self.layers
        for layer in hidden:
            vectors = F.gelu(layer(vectors))
        return last(vectors)
