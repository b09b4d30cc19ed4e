"""Tiny models with weights that are nowhere trivial, and batches built by the real collator."""

from typing import Any, Literal

import numpy as np
import torch

from model.batch import Batch
from model.encoders.text import TextSpans
from model.semicausal import ModelConfig, SemiCausal
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.spans.given import StoredSpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader

Range = tuple[int, int]

VOCABULARY = 37
SLOTS = 24
START_TOKEN = 5
"""Not 0, so that a padding zero cannot pass for it."""


def tiny_config(
    norm: Literal["deepnorm", "pre"] = "deepnorm",
    *,
    encoder: bool = True,
    chunk: int = 5,
    **encoder_options: Any,
) -> ModelConfig:
    """Decoder 2 x 16, encoder 3 x 12; widths, heads and layers all differ."""
    options: dict[str, Any] = {
        "width": 12,
        "num_layers": 3,
        "heads": 3,
        "feed_forward": 20,
        "max_tokens": 16,
        "dropout": 0.0,
        "start_token": START_TOKEN,
    }
    return ModelConfig.model_validate(
        {
            "decoder": {
                "vocabulary": VOCABULARY,
                "width": 16,
                "num_layers": 2,
                "heads": 2,
                "feed_forward": 28,
                "max_tokens": 40,
                "norm": norm,
                "loss_chunk_tokens": chunk,
            },
            "encoders": {"text": {"encoder": options | encoder_options}} if encoder else {},
        }
    )


def text_spans(batch: Batch) -> TextSpans:
    """The text spans of a batch."""
    spans = batch.spans["text"]
    assert isinstance(spans, TextSpans)
    return spans


def tiny_model(config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> SemiCausal:
    """In eval mode; biases and norms are random too, and attention is far from uniform."""
    model = SemiCausal(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = "norm.weight" in name
            wide = 1.0 if "relative_bias" in name else 0.2
            if name.startswith(("decoder.embedding", "connectors")):
                wide = 0.03  # the decoder multiplies it by 50
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * (0.1 if is_gain else wide) + (1.0 if is_gain else 0.0))
    return model


def random_tokens(*, sequences: int = 1, slots: int = SLOTS, seed: int = 0) -> list[list[int]]:
    """Sequences of S + 1 tokens."""
    random = np.random.default_rng(seed)
    return [
        [int(token) for token in random.integers(VOCABULARY, size=slots + 1)]
        for _ in range(sequences)
    ]


def collate(
    sequences: list[list[int]],
    spans: list[list[Range]] | None,
    *,
    slots: int = SLOTS,
    room: int | None = None,
    documents: list[list[Range]] | None = None,
) -> Batch:
    """A batch with these spans; without any encoder if `spans` is None.

    Slots attend within documents where those are given.
    """
    room = slots if room is None else room
    samples = [
        Sample(
            id=row,
            tokens=np.array(tokens, dtype=np.int64),
            spans=None if spans is None else np.array(spans[row], dtype=np.int64).reshape(-1, 2),
            documents=None if documents is None else np.array(documents[row], dtype=np.int64),
        )
        for row, tokens in enumerate(sequences)
    ]
    reader = TextReader(
        kind=StoredSpansConfig(kind="stored"),
        capacity=SpanCapacity(tokens=room, spans=room, longest_tokens=15),
        start_token=START_TOKEN,
    )
    collator = Collator(
        sequence_tokens=slots,
        readers={} if spans is None else {"text": reader},
        padding=3,
        attend="across" if documents is None else "within",
    )
    return collator([(0, sample) for sample in samples])
