"""The bidirectional encoder of spans, and what carries its vectors to the decoder.

Letters in shapes: B sequences, S slots, N spans, L rows of the longest span, E encoder width, H
decoder width, A heads, M vectors.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks_semicausal import Block, norm_of

NUM_BUCKETS = 32
MAX_DISTANCE = 128


def distance_buckets(longest: int, device: torch.device) -> Tensor:
    """T5's bucket [L, L] of the distance from each query row to each key row."""
    rows = torch.arange(longest, device=device)
    distance = rows[None, :] - rows[:, None]
    half = NUM_BUCKETS // 2
    exact = half // 2
    far = distance.abs()
    ratio = torch.log(far.clamp(min=exact).float() / exact) / math.log(MAX_DISTANCE / exact)
    logarithmic = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(far < exact, far, logarithmic) + half * (distance > 0).long()


class SpanAttention(nn.Module):
    """Attention of an encoder: every row of a span sees all of it."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.heads = shape["heads"]
        self.qkv = nn.Linear(shape["width"], 3 * shape["width"])
        self.out = nn.Linear(shape["width"], shape["width"])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[N, L, E] -> [N, L, E]; `bias` [N, A, L, L] is added to the scores."""
        N, L, E = x.shape
        parts = self.qkv(x).view(N, L, self.heads, 3, -1).unbind(dim=3)
        query, key, value = (part.transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(x.dtype))
        return self.out(mixed.transpose(1, 2).reshape(N, L, E))


class TextEncoder(nn.Module):
    """Reads spans of tokens, each alone and behind a start token, in both directions."""

    def __init__(self, shape: dict[str, Any], vocabulary: int):
        super().__init__()
        self.shape = shape
        inner = shape.get("embedding_width") or shape["width"]
        self.embedding = nn.Embedding(vocabulary, inner)
        self.positions = nn.Embedding(shape["max_tokens"], inner)
        self.embedding_norm = norm_of(shape, width=inner)
        if inner != shape["width"]:
            self.widening = nn.Linear(inner, shape["width"])
        if shape.get("relative_positions", True):
            self.relative_bias = nn.Embedding(NUM_BUCKETS, shape["heads"])
        blocks = (Block(shape, SpanAttention(shape)) for _ in range(shape["num_layers"]))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, is_real: Tensor) -> Tensor:
        """Vectors [N, L, E] of spans [N, L], start rows included."""
        L = tokens.shape[1]
        x = self.embedding(tokens) + self.positions(torch.arange(L, device=tokens.device))
        x = self.embedding_norm(x)
        if hasattr(self, "widening"):
            x = self.widening(x)
        bias = x.new_zeros(1, 1, L, L)
        if hasattr(self, "relative_bias"):
            bias = self.relative_bias(distance_buckets(L, tokens.device)).permute(2, 0, 1)[None]
        bias = bias.masked_fill(~is_real[:, None, None, :], float("-inf"))
        for block in self.blocks:
            x = block(x, bias)
        return x


class Connector(nn.Module):
    """Linear layers with GELU between them, from an encoder's width to the decoder's."""

    def __init__(self, shape: dict[str, Any], encoder_width: int, width: int):
        super().__init__()
        num_layers = 1 if shape["kind"] == "linear" else shape["num_layers"]
        widths = [encoder_width, *[width] * num_layers]
        layers = (nn.Linear(*sizes) for sizes in pairwise(widths))
        self.layers = nn.ModuleList(layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """[M, E] -> [M, H]."""
        *hidden, last = self.layers
        for layer in hidden:
            vectors = F.gelu(layer(vectors))
        return last(vectors)


class ResamplingAttention(nn.Module):
    """Attention of learned queries to the vectors of a picture and to themselves."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        width = shape["width"]
        self.heads = shape["heads"]
        self.vectors_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """[Q, E] -> [Q, E]; `vectors` [L, E] are the picture's."""
        Q, E = x.shape
        query = self.query(x).view(1, Q, self.heads, -1).transpose(1, 2)
        seen = self.key_value(torch.cat([self.vectors_norm(vectors), x]))
        parts = seen.view(1, len(seen), self.heads, 2, -1).unbind(dim=3)
        key, value = (part.transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(Q, E))


class Resampler(nn.Module):
    """Learned queries, each of which gives a vector of a picture, whatever its size."""

    def __init__(self, shape: dict[str, Any], encoder: dict[str, Any], width: int):
        super().__init__()
        inner = encoder["width"]
        block = {
            "width": inner,
            "heads": shape["heads"] or encoder["heads"],
            "feed_forward": shape["feed_forward"] or 4 * inner,
            "num_layers": shape["num_layers"],
            "norm": "pre",
        }
        self.num_queries: int = shape["queries"]
        self.queries = nn.Embedding(self.num_queries, inner)
        blocks = (Block(block, ResamplingAttention(block)) for _ in range(shape["num_layers"]))
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = nn.LayerNorm(inner)
        self.projection = nn.Linear(inner, width)

    def forward(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """[M, E] -> [N * Q, H]; `counts` [N] tells how many vectors each picture has."""
        found: list[Tensor] = []
        for mine in vectors.split(counts.tolist()):
            x = self.queries.weight
            for block in self.blocks:
                x = block(x, mine)
            found.append(x)
        return self.projection(self.final_norm(torch.cat(found)))


def laid_out(
    tokens: Tensor, spans: Tensor, *, start_token: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The spans of a batch, one a row behind its start token.

    Args:
        tokens: [B, S].
        spans: [B, S] number of the span that each slot lies in, counted from 1 in its row; else 0.
        start_token: opens each span.

    Returns:
        Tokens [N, L], which of them are real, and [M] the slot in B*S of each that is no start;
        None where there is no span.
    """
    names = spans + torch.arange(len(spans), device=spans.device)[:, None] * (spans.max() + 1)
    slots = (spans > 0).view(-1).nonzero()[:, 0]
    if not len(slots):
        return None
    _, lengths = names.reshape(-1)[slots].unique_consecutive(return_counts=True)
    firsts = lengths.cumsum(0) - lengths
    if not (slots.diff()[~torch.isin(torch.arange(1, len(slots)).to(slots), firsts)] == 1).all():
        raise ValueError("spans: the slots of one span do not follow each other")
    columns = torch.arange(int(lengths.max()) + 1, device=tokens.device)
    is_real = columns <= lengths[:, None]
    laid = tokens.new_full(is_real.shape, start_token)
    laid[is_real & (columns > 0)] = tokens.reshape(-1)[slots]
    return laid, is_real, slots
