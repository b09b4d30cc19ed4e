"""Packed encoding against one span at a time, and the relative positions behind it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from model import attention, torchvision_free
from model.attention import SpanGrid
from model.encoders.text import TextEncoder, distance_buckets, relative_buckets
from model.semicausal import SemiCausal
from tests.model import reference
from tests.model.examples import (
    SLOTS,
    START_TOKEN,
    Range,
    collate,
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


@pytest.mark.parametrize("case", CASES)
def test_a_grid_of_few_shapes_computes_the_same(case: str, monkeypatch: pytest.MonkeyPatch):
    """As on GPUs: rows beyond the longest span, and spans of padding alone."""
    tokens = np.array(random_tokens(sequences=len(CASES[case]), slots=SLOTS - 1))
    spans = packed(tokens, CASES[case])
    results: list[list[Tensor]] = []
    for is_padded in (False, True):
        monkeypatch.setattr(attention, "is_padded_on", lambda _, padded=is_padded: padded)
        encoder = text_encoder(tiny_model(tiny_config(), dtype=torch.float64))
        vectors = encoder(spans)
        vectors.square().sum().backward()
        grads = [p.grad for p in encoder.parameters() if p.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        results.append([vectors, norm, *grads])
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    grid = SpanGrid.fitted(spans.cells[: spans.num_rows], spans.num_spans, spans.longest_rows)
    assert (grid.longest_rows % 16, grid.num_spans % 8) == (0, 0)
    bias = encoder._bias(grid)
    assert bias is not None
    assert all(stride % 16 == 0 for stride in bias.stride()[:-1])


def test_a_grid_is_no_larger_than_its_spans_on_cpus():
    spans = packed(np.array(random_tokens(slots=SLOTS - 1)), [[(3, 9), (12, 15)]])
    grid = SpanGrid.fitted(spans.cells[: spans.num_rows], spans.num_spans, spans.longest_rows)
    assert (grid.num_spans, grid.longest_rows) == (2, 7)


class _OnTheHost(TorchDispatchMode):
    """Operators that leave a tensor in the memory of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in _pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        self.found += [str(func) for tensor in tensors if tensor.device.type == "cpu"]
        return out


@pytest.mark.parametrize("documents", [None, [[(0, 9), (9, 25)]]], ids=["across", "within"])
def test_a_step_makes_nothing_on_the_host(documents: list[list[Range]] | None):
    """What would be copied to a GPU and wait for it; the device here has no memory at all."""
    batch = collate(random_tokens(), [[(2, 5), (12, 22)]], documents=documents)
    elsewhere = torch.device("meta")
    model, batch = tiny_model(tiny_config()).to(elsewhere), batch.to(elsewhere)
    with _OnTheHost() as seen:
        model(batch).total.backward()
    assert seen.found == []
    with _OnTheHost() as seen:
        torch.ones(3).to(elsewhere)
    assert seen.found == ["aten.ones.default"], "it sees what there is"


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
