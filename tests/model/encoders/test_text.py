"""Packed encoding against one span at a time, and the relative positions behind it."""

import numpy as np
import pytest
import torch

from model import torchvision_free
from model.encoders.text import TextEncoder, distance_buckets, relative_buckets
from model.semicausal import SemiCausal
from tests.model import reference
from tests.model.examples import (
    SLOTS,
    START_TOKEN,
    Range,
    random_tokens,
    tiny_config,
    tiny_model,
)
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text

CAPACITY = SpanCapacity(tokens=SLOTS, spans=SLOTS, longest_tokens=15)


def text_encoder(model: SemiCausal) -> TextEncoder:
    encoder = model.encoders["text"]
    assert isinstance(encoder, TextEncoder)
    return encoder


def packed(tokens: np.ndarray, chosen: list[list[Range]]):
    ranges = [np.array(spans, dtype=np.int64).reshape(-1, 2) for spans in chosen]
    flat = FlatSpans.of(ranges)
    return pack_text(tokens, flat, capacity=CAPACITY, start_token=START_TOKEN)


CASES: dict[str, list[list[Range]]] = {
    "one": [[(3, 9)]],
    "one token": [[(3, 4)]],
    "lengths 1 to 15": [[(1, 2), (3, 5), (5, 20)], [], [(2, 9), (9, 10), (12, 22)]],
    "equal lengths": [[(1, 5), (5, 9)], [(9, 13)]],
}


@pytest.mark.parametrize("case", CASES)
def test_packed_encoding_equals_span_by_span(case: str):
    chosen = CASES[case]
    tokens = np.array(random_tokens(sequences=len(chosen), slots=SLOTS - 1))
    together, apart = tiny_model(tiny_config()), tiny_model(tiny_config())
    weigh = torch.Generator().manual_seed(3)

    vectors = text_encoder(together)(packed(tokens, chosen))
    alone = torch.cat(
        [
            text_encoder(apart)(packed(tokens[row : row + 1, a:b], [[(0, b - a)]]))
            for row, spans in enumerate(chosen)
            for a, b in spans
        ]
    )
    by_hand = [
        vector
        for row, spans in enumerate(chosen)
        for a, b in spans
        for vector in reference.encode(
            dict(apart.named_parameters()),
            apart.config.encoders["text"].encoder,
            tokens[row, a:b].tolist(),
        )
    ]
    torch.testing.assert_close(vectors, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vectors, torch.stack(by_hand), rtol=1e-5, atol=1e-5)

    direction = torch.randn(vectors.shape, generator=weigh)
    (vectors * direction).sum().backward()
    (alone * direction).sum().backward()
    for (name, a), b in zip(
        text_encoder(together).named_parameters(), text_encoder(apart).parameters(), strict=True
    ):
        assert a.grad is not None
        assert b.grad is not None
        scale = max(1.0, b.grad.abs().max().item())
        torch.testing.assert_close(
            a.grad, b.grad, rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_room_beyond_the_real_rows_is_never_read():
    """Whatever lies in the static arrays behind the real rows changes nothing."""
    tokens = np.array(random_tokens(slots=SLOTS - 1))
    spans = packed(tokens, [[(3, 9), (12, 15)]])
    encoder = text_encoder(tiny_model(tiny_config()))
    before = encoder(spans)
    assert spans.num_rows < len(spans.tokens)
    assert spans.num_vectors < len(spans.vectors)
    spans.tokens[spans.num_rows :] = 7
    spans.positions[spans.num_rows :] = 3
    spans.cells[spans.num_rows :] = 1
    spans.vectors[spans.num_vectors :] = 2
    assert torch.equal(before, encoder(spans))


def test_spans_do_not_see_each_other():
    tokens = np.array(random_tokens(slots=SLOTS - 1))
    encoder = text_encoder(tiny_model(tiny_config(), dtype=torch.float64))
    before = encoder(packed(tokens, [[(1, 6), (6, 14)]]))
    tokens[0, 10] = (tokens[0, 10] + 1) % 37
    after = encoder(packed(tokens, [[(1, 6), (6, 14)]]))
    torch.testing.assert_close(before[:5], after[:5], rtol=0, atol=1e-12)
    changed = (before[5:] - after[5:]).abs().amax(dim=1)
    assert (changed > 1e-6).all(), "inside a span every token sees every other, both ways"


def test_dropout_works_in_training_only():
    tokens = np.array(random_tokens(slots=SLOTS - 1))
    encoder = text_encoder(tiny_model(tiny_config(dropout=0.5)))
    spans = packed(tokens, [[(1, 6)]])
    assert torch.equal(encoder(spans), encoder(spans))
    encoder.train()
    assert not torch.equal(encoder(spans), encoder(spans))


def test_relative_buckets_equal_the_reference():
    buckets = relative_buckets(distance_buckets(310), 300)
    for query in (0, 1, 150, 299):
        wanted = [reference.relative_bucket(key - query) for key in range(300)]
        assert buckets[query].tolist() == wanted


def test_relative_buckets_equal_t5():
    torchvision_free.install()
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config()
    rows = torch.arange(520)
    wanted = T5Attention._relative_position_bucket(
        rows[None, :] - rows[:, None],
        bidirectional=True,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    )
    assert torch.equal(relative_buckets(distance_buckets(520), 520), wanted)
