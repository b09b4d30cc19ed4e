"""Text that an image encoder reads behind a picture, as one span with it.

Source: VLMo (2111.02358) §3.1, MetaLM (2206.06336) §4: attention is shared, and feed-forward nets
are each modality's own but in the last layers.
"""

from typing import Annotated

from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.config import Config, Tokens
from model.layers import Layers, normal


class PrefixTextConfig(Config):
    """The text that may stand behind a picture, in the same span."""

    max_tokens: Tokens = 64
    """Of the longest."""
    shared_layers: Annotated[int, Field(ge=0, le=2**12)] = 2
    """The last so many layers have one feed-forward net for pictures and text (VLMo-base)."""


class PrefixEmbedding(nn.Module):
    """Token and learned position embeddings of text behind pictures."""

    def __init__(self, config: PrefixTextConfig, width: int, vocabulary: int, layers: Layers):
        super().__init__()
        self.embedding = layers.vocabulary(vocabulary, width, init=normal(0.02))
        self.positions = layers.table(config.max_tokens, width, init=normal(0.02))

    def forward(
        self, tokens: Int64[Tensor, "T"], positions: Int64[Tensor, "T"]
    ) -> Float[Tensor, "T E"]:
        """Rows of tokens at their places behind their picture, counted from 0."""
        return self.embedding(tokens) + self.positions(positions)
