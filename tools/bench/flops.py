"""Floating-point operations of a training step, counted from the shapes: matrix products alone."""

from model.batch import Batch
from model.decoder import DecoderConfig
from model.encoders.protocol import EncoderKind, SpanLoad
from model.encoders.text import TextSpans
from model.semicausal import ModelConfig
from parallel.costs import (
    BACKWARD,
    block_attention,
    block_products,
    connector_work,
    head_products,
)


def training(config: ModelConfig, batch: Batch) -> int:
    """Operations of a batch's forward and backward, in all parts, each of which trains."""
    return (1 + BACKWARD) * forward(config, batch)


def forward(config: ModelConfig, batch: Batch) -> int:
    """Operations of a batch's forward; padding costs nothing, for none should be computed.

    A causal slot counts as attending to all S slots, as the usual 12 L d T and torch's own counter
    have it. Embedding lookups, norms, activations and the optimiser are not counted.
    """
    B, S = batch.tokens.shape
    decoder = config.decoder
    total = _blocks(decoder, rows=B * S, pairs=B * S * S)
    total += int(head_products(decoder.width, decoder.vocabulary, scored=batch.num_scored))
    for modality, spans in batch.spans.items():
        assert isinstance(spans, TextSpans), "what the bench knows to count"
        part = config.encoders[modality]
        pairs = sum(rows**2 for rows in span_rows(spans))
        total += _blocks(part.encoder, rows=spans.num_rows, pairs=pairs)
        total += int(
            connector_work(
                part,
                to=decoder.width,
                load=SpanLoad(vectors=spans.num_vectors, spans=spans.num_spans, longest=0),
            ).forward
        )
    return total


def span_rows(spans: TextSpans) -> list[int]:
    """Rows of each span, its start token included."""
    starts = (spans.positions[: spans.num_rows] == 0).nonzero().squeeze(1).tolist()
    stops = [*starts[1:], spans.num_rows]
    return [stop - start for start, stop in zip(starts, stops, strict=True)]


def _blocks(config: DecoderConfig | EncoderKind, *, rows: int, pairs: int) -> int:
    """A stack of blocks.

    Args:
        config: its shape.
        rows: slots that go through the linear layers.
        pairs: pairs of slots that attend, over all heads of one layer.
    """
    products = block_products(config.width, config.feed_forward, rows=rows)
    return config.num_layers * int(products + block_attention(config.width, pairs=pairs))
