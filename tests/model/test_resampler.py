"""The query resampler against a loop over items in plain torch."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from model import attention
from model.batch import PackedSpans
from model.encoders.image import ImageEncoderConfig
from model.layers import Layers
from model.recompute import Recompute
from model.resampler import Resampler, ResamplerConnectorConfig
from model.semicausal import EncoderConfig, ModelConfig, parameter_counts

E, H, Q = 16, 24, 3
ENCODER = ImageEncoderConfig(
    kind="image", width=E, num_layers=1, heads=2, feed_forward=32, patch_pixels=4, max_patches=8
)
CONFIG = ResamplerConnectorConfig(
    kind="resampler", queries=Q, num_layers=2, heads=4, feed_forward=40
)
LENGTHS = [[4], [1], [2, 7, 1, 7], [5, 5, 5], [8, 1, 1, 1, 1, 1, 1, 1, 1]]
"""Vectors of the items of a microbatch: one, as few as can be, unlike each other, all alike."""


def tiny_resampler(recompute: Recompute = "none", dtype: torch.dtype = torch.float64) -> Resampler:
    """Biases and norms are random too, and attention is far from uniform."""
    module = CONFIG.build(ENCODER, H, layers=Layers(), recompute=recompute).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = "norm.weight" in name
            parameter.copy_(noise * (0.1 if is_gain else 0.4) + (1.0 if is_gain else 0.0))
    return module


def packed(lengths: list[int], *, room: int = 0) -> PackedSpans:
    longest, count = max(lengths), sum(lengths)
    cells = torch.tensor([n * longest + i for n, some in enumerate(lengths) for i in range(some)])
    return PackedSpans(
        slots=torch.arange(Q * len(lengths)),
        num_vectors=count,
        item_cells=torch.cat([cells, cells.new_zeros(room)]),
        num_items=len(lengths),
        longest_item=longest,
    )


def vectors_of(lengths: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(sum(lengths), E, generator=generator, dtype=torch.float64)


def one_by_one(module: Resampler, vectors: Tensor, lengths: list[int]) -> Tensor:
    """Each item, each head and each query by itself (Flamingo, A.1.1)."""
    own = dict(module.named_parameters())
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * own[f"{name}.weight"] + own[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    found: list[Tensor] = []
    D = E // 4
    for start, stop in pairwise(starts):
        x = own["queries.weight"]
        for i in range(2):
            block = f"blocks.{i}"
            normed = norm(x, f"{block}.attention_norm")
            seen = norm(vectors[start:stop], f"{block}.attention.vectors_norm")
            seen = torch.cat([seen, normed])
            query = linear(normed, f"{block}.attention.query")
            key_value = linear(seen, f"{block}.attention.key_value")
            rows: list[Tensor] = []
            for row in query:
                heads: list[Tensor] = []
                for head in range(4):
                    key = key_value[:, 2 * D * head : 2 * D * head + D]
                    value = key_value[:, 2 * D * head + D : 2 * D * (head + 1)]
                    scores = key @ row[D * head : D * (head + 1)] / math.sqrt(D)
                    heads.append(scores.softmax(0) @ value)
                rows.append(torch.cat(heads))
            x = x + linear(torch.stack(rows), f"{block}.attention.out")
            hidden = linear(norm(x, f"{block}.feed_forward_norm"), f"{block}.feed_forward.up")
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + linear(hidden, f"{block}.feed_forward.down")
        found.append(linear(norm(x, "final_norm"), "projection"))
    return torch.cat(found)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("is_padded", [False, True])
def test_packed_items_are_read_as_one_by_one(
    lengths: list[int], is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, also in grids as GPUs have them."""
    monkeypatch.setattr(attention, "is_padded_on", lambda _: is_padded)
    together, apart = tiny_resampler(), tiny_resampler()
    mine, theirs = (vectors_of(lengths).requires_grad_() for _ in range(2))
    found, wanted = together(mine, packed(lengths)), one_by_one(apart, theirs, lengths)
    assert found.shape == (Q * len(lengths), H)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    weigh = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
    (found * weigh).sum().backward()
    (wanted * weigh).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    for (name, a), b in zip(together.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_computed_again_it_is_the_same(recompute: Recompute) -> None:
    lengths = [2, 7, 1]
    gradients: list[list[Tensor | None]] = []
    for kind in ("none", recompute):
        module = tiny_resampler(kind)
        module(vectors_of(lengths), packed(lengths)).square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_rows_behind_the_real_ones_are_nothing() -> None:
    """Encoders in 16 bits give some, so that shapes repeat."""
    lengths, module = [3, 5], tiny_resampler()
    vectors = vectors_of(lengths)
    more = torch.cat([vectors, torch.full((4, E), 1e9, dtype=torch.float64)])
    found = module(more, packed(lengths, room=4))
    torch.testing.assert_close(found, module(vectors, packed(lengths)))


def test_slots_of_an_item() -> None:
    """As many as queries, whatever its size; but what the encoder cannot read stays an error."""
    part = EncoderConfig(encoder=ENCODER, connector=CONFIG)
    sizes = [(4, 4), (8, 16), (300, 200)]
    assert [ENCODER.item_vectors(size) for size in sizes] == [1, 8, 6]
    assert [part.item_slots(size) for size in sizes] == [Q] * 3
    assert (part.longest_span, ENCODER.longest_span) == (Q, 8)
    linear = EncoderConfig(encoder=ENCODER)
    assert [linear.item_slots(size) for size in sizes] == [1, 8, 6]
    sounds: Any = {
        "kind": "audio", "width": E, "num_layers": 1, "heads": 2, "feed_forward": 32,
        "max_seconds": 1.0,
    }  # fmt: skip
    heard = EncoderConfig(encoder=sounds, connector=CONFIG)
    assert heard.item_slots([8000, 16000]) == Q
    with pytest.raises(ValueError, match="seconds"):
        heard.item_slots([32000, 16000])


def config_of(encoder: dict[str, Any], **connector: Any) -> ModelConfig:
    decoder = {
        "vocabulary": 97, "width": H, "num_layers": 1, "heads": 2, "feed_forward": 32,
        "max_tokens": 48,
    }  # fmt: skip
    parts = {"it": {"encoder": encoder, "connector": {"kind": "resampler", **connector}}}
    return ModelConfig.model_validate({"decoder": decoder, "encoders": parts})


def test_parameters() -> None:
    counts = parameter_counts(config_of(ENCODER.model_dump(), queries=Q, num_layers=1))
    attend = E + E * E + E + 2 * E * E + 2 * E + E * E + E + E  # and the vectors' norm
    net = 2 * 4 * E * E + 4 * E + E
    assert counts["connector.it"] == Q * E + attend + net + 2 * 2 * E + 2 * E + E * H + H


@pytest.mark.parametrize(
    ("encoder", "connector", "message"),
    [
        (
            {"width": E, "num_layers": 1, "heads": 2, "feed_forward": 32, "max_tokens": 16},
            {},
            "connector.kind: resampler gives 64 vectors whatever is read, and a span of text has a "
            "slot for each of its tokens: choose linear or mlp",
        ),
        (
            ENCODER.model_dump(),
            {"heads": 3},
            "connector.heads: 3 heads do not divide encoder.width 16: choose a number that does",
        ),
    ],
)
def test_what_is_refused(encoder: dict[str, Any], connector: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        config_of(encoder, **connector)
    assert message in str(raised.value)
