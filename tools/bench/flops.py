"""Floating-point operations of a training step, counted from the shapes: matrix products alone."""

from dataclasses import dataclass

from model.batch import Batch
from model.decoder import DecoderConfig
from model.encoders.text import TextEncoderConfig, TextSpans
from model.semicausal import ModelConfig
from parallel.costs import (
    BACKWARD,
    block_attention,
    block_products,
    connector_products,
    head_products,
)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Forward operations by part; `training` adds the backward.

    Attributes:
        decoder: its blocks, over all slots.
        head: logits of the scored slots.
        encoder: its blocks, over the real rows of the spans.
        connector: over the span vectors.
    """

    decoder: int
    head: int
    encoder: int = 0
    connector: int = 0

    @property
    def forward(self) -> int:
        """All parts."""
        return self.decoder + self.head + self.encoder + self.connector

    @property
    def training(self) -> int:
        """Forward and backward of all parts, each of which trains."""
        return (1 + BACKWARD) * self.forward


def count(config: ModelConfig, batch: Batch) -> Flops:
    """Operations of one batch; padding costs nothing, for none should be computed.

    A causal slot counts as attending to all S slots, as the usual 12 L d T and torch's own counter
    have it. Embedding lookups, norms, activations and the optimiser are not counted.
    """
    B, S = batch.tokens.shape
    decoder = config.decoder
    total = Flops(
        decoder=_blocks(decoder, rows=B * S, pairs=B * S * S),
        head=int(head_products(decoder.width, decoder.vocabulary, scored=batch.num_scored)),
    )
    for modality, spans in batch.spans.items():
        assert isinstance(spans, TextSpans), "what the bench knows to count"
        part = config.encoders[modality]
        pairs = sum(rows**2 for rows in span_rows(spans))
        connector = connector_products(
            part.connector,
            width=part.encoder.width,
            to=decoder.width,
            vectors=spans.num_vectors,
        )
        total = Flops(
            decoder=total.decoder,
            head=total.head,
            encoder=total.encoder + _blocks(part.encoder, rows=spans.num_rows, pairs=pairs),
            connector=total.connector + int(connector),
        )
    return total


def span_rows(spans: TextSpans) -> list[int]:
    """Rows of each span, its start token included."""
    starts = (spans.positions[: spans.num_rows] == 0).nonzero().squeeze(1).tolist()
    stops = [*starts[1:], spans.num_rows]
    return [stop - start for start, stop in zip(starts, stops, strict=True)]


def _blocks(config: DecoderConfig | TextEncoderConfig, *, rows: int, pairs: int) -> int:
    """A stack of blocks.

    Args:
        config: its shape.
        rows: slots that go through the linear layers.
        pairs: pairs of slots that attend, over all heads of one layer.
    """
    products = block_products(config.width, config.feed_forward, rows=rows)
    return config.num_layers * int(products + block_attention(config.width, pairs=pairs))
