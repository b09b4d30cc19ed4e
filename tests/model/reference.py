"""The semi-causal objective, term by term, written from the papers for clarity alone.

Nothing here is batched, packed, cached or fused: a span is a list of tokens, a head is a slice of a
weight, attention is a loop over queries, a mask is the end of a slice. It reads the weights of a
`SemiCausal` by name and shares no code with it.

Sources: MetaLM §2.1-2.3 and §3.2 (slots, Eq. 1), DeepNet fig. 2 (residuals), T5 §2.1 (relative
bias), Vaswani et al. §3.5 (sinusoids).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from model.encoders.protocol import EncoderKind
from model.encoders.text import TextEncoderConfig
from model.semicausal import ModelConfig

Weights = Mapping[str, Tensor]
Range = tuple[int, int]


def targets(num_tokens: int, spans: list[Range]) -> list[int]:
    """Which tokens are predicted: Eq. 1, with x_0 = `<s>` and n = num_tokens - 1.

    sum over i = 0..k and t = e_i..s_{i+1} (inclusive), where e_0 = 1 and s_{k+1} = n.
    """
    ends = [1] + [stop for _, stop in spans]
    starts = [start for start, _ in spans] + [num_tokens - 1]
    return [t for end, start in zip(ends, starts, strict=True) for t in range(end, start + 1)]


def terms(
    weights: Weights, config: ModelConfig, tokens: list[int], spans: list[Range]
) -> dict[int, Tensor]:
    """Loss in nats of every scored token of one sequence of S + 1 tokens, by its place."""
    states = decode(weights, config, inputs(weights, config, tokens[:-1], spans))
    table = weights["decoder.embedding.weight"]
    losses: dict[int, Tensor] = {}
    for t in targets(len(tokens), spans):
        logits = table @ states[t - 1]
        losses[t] = -torch.log_softmax(logits, dim=0)[tokens[t]]
    return losses


def inputs(
    weights: Weights, config: ModelConfig, tokens: list[int], spans: list[Range]
) -> list[Tensor]:
    """One vector a slot: 50 times (word embedding or connector output), plus the position.

    50 is one over the std that embeddings are drawn with (docs/decisions/0002).
    """
    width = config.decoder.width
    vectors = [weights["decoder.embedding.weight"][token] for token in tokens]
    for start, stop in spans:
        encoded = encode(weights, config.encoders["text"].encoder, tokens[start:stop])
        for slot, vector in zip(range(start, stop), encoded, strict=True):
            vectors[slot] = connect(weights, vector)
    return [50 * vector + sinusoid(slot, width).to(vector) for slot, vector in enumerate(vectors)]


def sinusoid(position: int, width: int) -> Tensor:
    """Sines in the first half, cosines in the second, wavelengths from 2 pi to 10,000 x 2 pi."""
    half = width // 2
    values = torch.zeros(width, dtype=torch.float64)
    for i in range(half):
        angle = position / 10_000 ** (i / (half - 1))
        values[i], values[half + i] = math.sin(angle), math.cos(angle)
    return values


def encode(weights: Weights, config: EncoderKind, tokens: list[int]) -> list[Tensor]:
    """A vector for each token of one span, which sees a start token and itself and nothing else."""
    assert isinstance(config, TextEncoderConfig)
    prefix = "encoders.text."
    rows = [config.start_token, *tokens]
    x = [
        weights[prefix + "embedding.weight"][token] + weights[prefix + "positions.weight"][place]
        for place, token in enumerate(rows)
    ]
    x = [norm(weights, prefix + "embedding_norm", row) for row in x]
    table = weights[prefix + "relative_bias.weight"]
    for layer in range(config.num_layers):
        block = f"{prefix}blocks.{layer}."
        mixed = []
        for query in range(len(x)):
            heads = []
            for head in range(config.heads):
                q, k, v = project(weights, block, x, head, config.heads)
                scores = [
                    q[query] @ k[key] / math.sqrt(len(q[query]))
                    + table[relative_bucket(key - query), head]
                    for key in range(len(x))
                ]
                heads.append(average(scores, v))
            mixed.append(linear(weights, block + "attention.out", torch.cat(heads)))
        x = deepnorm_layer(weights, block, x, mixed, config.num_layers)
    return x[1:]


def relative_bucket(distance: int, num_buckets: int = 32, max_distance: int = 128) -> int:
    """T5's bucket of (key - query): a sign, exact to 7, then by logarithm up to 128."""
    half = num_buckets // 2
    exact = half // 2
    far = abs(distance)
    if far >= exact:
        ratio = math.log(far / exact) / math.log(max_distance / exact)
        far = min(half - 1, exact + math.floor(ratio * (half - exact)))
    return far + (half if distance > 0 else 0)


def connect(weights: Weights, vector: Tensor) -> Tensor:
    """The linear connector."""
    return linear(weights, "connectors.text.layers.0", vector)


def decode(weights: Weights, config: ModelConfig, x: list[Tensor]) -> list[Tensor]:
    """States of all slots; slot t sees slots 0..t."""
    decoder = config.decoder
    for layer in range(decoder.num_layers):
        block = f"decoder.blocks.{layer}."
        pre = decoder.norm == "pre"
        read = [norm(weights, block + "attention_norm", row) for row in x] if pre else x
        mixed = []
        for query in range(len(x)):
            heads = []
            for head in range(decoder.heads):
                q, k, v = project(weights, block, read[: query + 1], head, decoder.heads)
                scores = [q[query] @ key / math.sqrt(len(key)) for key in k]
                heads.append(average(scores, v))
            mixed.append(linear(weights, block + "attention.out", torch.cat(heads)))
        x = (
            pre_norm_layer(weights, block, x, mixed)
            if pre
            else deepnorm_layer(weights, block, x, mixed, decoder.num_layers)
        )
    if decoder.norm == "pre":
        x = [norm(weights, "decoder.final_norm", row) for row in x]
    return x


def deepnorm_layer(
    weights: Weights, block: str, x: list[Tensor], mixed: list[Tensor], num_layers: int
) -> list[Tensor]:
    """x <- LN(alpha x + f(x)), alpha = (2 N)^(1/4), for attention and then the feed-forward."""
    alpha = (2 * num_layers) ** 0.25
    after = []
    for row, branch in zip(x, mixed, strict=True):
        row = norm(weights, block + "attention_norm", alpha * row + branch)
        branch = feed_forward(weights, block, row)
        after.append(norm(weights, block + "feed_forward_norm", alpha * row + branch))
    return after


def pre_norm_layer(
    weights: Weights, block: str, x: list[Tensor], mixed: list[Tensor]
) -> list[Tensor]:
    """x <- x + f(LN(x)); `mixed` is the attention's branch."""
    after = []
    for row, branch in zip(x, mixed, strict=True):
        row = row + branch
        read = norm(weights, block + "feed_forward_norm", row)
        after.append(row + feed_forward(weights, block, read))
    return after


def project(
    weights: Weights, block: str, rows: list[Tensor], head: int, num_heads: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Queries, keys and values of one head, a vector a row."""
    weight = weights[block + "attention.qkv.weight"]
    bias = weights[block + "attention.qkv.bias"]
    # Rows of the fused weight: head by head, and within a head its queries, keys and values.
    size = weight.shape[0] // num_heads // 3
    parts = []
    for part in range(3):
        first = (3 * head + part) * size
        matrix, offset = weight[first : first + size], bias[first : first + size]
        parts.append([matrix @ row + offset for row in rows])
    return parts[0], parts[1], parts[2]


def average(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    """Values weighted by the softmax of their scores."""
    shares = torch.stack(scores).softmax(dim=0)
    return sum(
        (share * value for share, value in zip(shares, values, strict=True)),
        start=torch.zeros_like(values[0]),
    )


def feed_forward(weights: Weights, block: str, row: Tensor) -> Tensor:
    """Linear, exact GELU, linear."""
    hidden = linear(weights, block + "feed_forward.up", row)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return linear(weights, block + "feed_forward.down", hidden)


def linear(weights: Weights, name: str, row: Tensor) -> Tensor:
    return weights[name + ".weight"] @ row + weights[name + ".bias"]


def norm(weights: Weights, name: str, row: Tensor, epsilon: float = 1e-5) -> Tensor:
    centred = row - row.mean()
    unit = centred / torch.sqrt((centred * centred).mean() + epsilon)
    return weights[name + ".weight"] * unit + weights[name + ".bias"]
