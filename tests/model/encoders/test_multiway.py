"""Pictures with text behind them in one span, against a loop over spans in plain torch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import attention
from model.encoders.image import ImageEncoder, ImageEncoderConfig, ImageSpans
from model.layers import Layers
from model.recompute import Recompute
from model.semicausal import EncoderConfig
from train.data.spans.picture import Picture, pack_pictures
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity

E, SLOTS, VOCABULARY, MOST_TEXT = 16, 48, 50, 8
SIZES = [(12, 16), (4, 4), (8, 8), (4, 12)]
PREFIXES = {
    "some": [3, 0, 5, 1],
    "all": [2, 2, 8, 4],
    "none": [0, 0, 0, 0],
}


def config_of(**changes: Any) -> ImageEncoderConfig:
    shape: dict[str, Any] = {
        "kind": "image", "width": E, "num_layers": 3, "heads": 2, "feed_forward": 32,
        "patch_pixels": 4, "max_patches": 12,
        "text": {"max_tokens": MOST_TEXT, "shared_layers": 1},
    }  # fmt: skip
    return ImageEncoderConfig.model_validate(shape | changes)


def encoder_of(config: ImageEncoderConfig, recompute: Recompute = "none") -> ImageEncoder:
    """Biases and norms are random too."""
    encoder = config.build(vocabulary=VOCABULARY, layers=Layers(), recompute=recompute)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = "norm.weight" in name
            parameter.copy_(noise * (0.1 if is_gain else 0.3) + (1.0 if is_gain else 0.0))
    return encoder.double().eval()


def pictures_of(config: ImageEncoderConfig) -> list[Picture]:
    draw, found = np.random.default_rng(1), list[Picture]()
    for size in SIZES:
        rows, columns = config.grid(size)
        patches = draw.integers(256, size=(rows * columns, 48)).astype(np.uint8)
        found.append(Picture(patches=patches, grid=(rows, columns)))
    return found


def packed(config: ImageEncoderConfig, prefixes: list[int]) -> tuple[ImageSpans, list[list[int]]]:
    """The pictures in two sequences with words between them; and the text of each."""
    pictures, at = pictures_of(config), 1
    kept = config.class_token == "kept"
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (2, SLOTS))
    starts: list[int] = []
    lengths: list[int] = []
    texts: list[list[int]] = []
    for number, (picture, prefix) in enumerate(zip(pictures, prefixes, strict=True)):
        at = 1 if number == 2 else at
        vectors = len(picture.patches) + kept
        texts.append(tokens[number // 2, at + vectors : at + vectors + prefix].tolist())
        starts.append(at)
        lengths.append(vectors + prefix)
        at += vectors + prefix + 2
    spans = pack_pictures(
        pictures,
        FlatSpans(np.array([0, 0, 1, 1]), np.array(starts), np.array(lengths)),
        encoder=config,
        capacity=SpanCapacity(tokens=SLOTS, spans=8, longest_tokens=13, prefix_tokens=MOST_TEXT),
        sequences=2,
        sequence_tokens=SLOTS,
        tokens=tokens,
    )
    slots = [
        SLOTS * (number // 2) + start + i
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True))
        for i in range(length)
    ]
    assert spans.slots[: len(slots)].tolist() == slots
    assert set(spans.slots[len(slots) :].tolist()) <= {2 * SLOTS}
    return spans, texts


def one_by_one(encoder: ImageEncoder, texts: list[list[int]]) -> Tensor:
    """Each span by itself, each row by the net of its kind."""
    own, config = dict(encoder.named_parameters()), encoder.config
    found: list[Tensor] = []

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (E,), own[f"{name}.weight"], own[f"{name}.bias"])

    def net(row: Tensor, name: str) -> Tensor:
        return linear(F.gelu(linear(row, f"{name}.up")), f"{name}.down")

    for picture, text in zip(pictures_of(config), texts, strict=True):
        rows: list[Tensor] = []
        if config.class_rows:
            places = own["positions.weight"][0]
            rows.append(own["class_embedding.weight"][0] + places)
        pixels = config.normalized(torch.from_numpy(picture.patches)).double()
        for number, patch in enumerate(linear(pixels, "projection")):
            place = divmod(number, picture.grid[1])
            rows.append(patch + place_of(encoder, place, picture.grid))
        num_image = len(rows)
        for number, token in enumerate(text):
            rows.append(own["text.embedding.weight"][token] + own["text.positions.weight"][number])
        x = torch.stack(rows)
        for i in range(config.num_layers):
            block = f"blocks.{i}"
            qkv = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv")
            qkv = qkv.view(len(x), 2, 3, E // 2)
            query, key, value = (qkv[:, :, part].transpose(0, 1) for part in range(3))
            scores = query @ key.transpose(1, 2) / math.sqrt(E // 2)
            mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(x), E)
            x = x + linear(mixed, f"{block}.attention.out")
            normed = norm(x, f"{block}.feed_forward_norm")
            is_shared = i == config.num_layers - 1
            hidden = [
                net(row, f"{block}.feed_forward")
                if is_shared or number < num_image
                else net(row, f"{block}.other_feed_forward")
                for number, row in enumerate(normed)
            ]
            x = x + torch.stack(hidden)
        found.append(norm(x, "final_norm")[config.dropped_rows :])
    return torch.cat(found)


def place_of(encoder: ImageEncoder, place: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """What the encoder without text gives, which has tests of its own."""
    return encoder._positions(torch.tensor([place]), torch.tensor([grid]))[0]


@pytest.mark.parametrize("prefixes", PREFIXES)
@pytest.mark.parametrize("class_token", ["none", "dropped", "kept"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_spans_of_both_are_read_as_one_by_one(
    prefixes: str, class_token: str, is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors and gradients; also in grids as GPUs have them."""
    config = config_of(class_token=class_token)
    spans, texts = packed(config, PREFIXES[prefixes])
    together, apart = encoder_of(config), encoder_of(config)
    monkeypatch.setattr(attention, "is_padded_on", lambda _: is_padded)
    found, wanted = together(spans), one_by_one(apart, texts)
    assert found.shape == wanted.shape == (spans.num_vectors, E)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    weigh = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
    (found * weigh).sum().backward()
    (wanted * weigh).sum().backward()
    for (name, a), b in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert a.grad is not None, f"{name}: every rank must use every weight"
        other = torch.zeros_like(a) if b.grad is None else b.grad
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(a.grad, other, rtol=0, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_computed_again_it_is_the_same(recompute: Recompute) -> None:
    config = config_of()
    spans, _ = packed(config, PREFIXES["some"])
    gradients: list[list[Tensor | None]] = []
    for kind in ("none", recompute):
        encoder = encoder_of(config, kind)
        encoder(spans).square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_in_16_bits_shapes_repeat_and_mean_the_same() -> None:
    config = config_of()
    spans, _ = packed(config, PREFIXES["some"])
    encoder = encoder_of(config).float()
    wanted = encoder(spans)
    found = encoder.bfloat16()(spans)
    assert len(found) % 64 == 0
    torch.testing.assert_close(found[: len(wanted)].float(), wanted, rtol=0.1, atol=0.15)


def test_without_text_nothing_is_there() -> None:
    """What was trained before has the same weights, by the same names."""
    plain = encoder_of(config_of(text=None))
    named = dict(encoder_of(config_of()).named_parameters())
    assert {*named} - {name for name, _ in plain.named_parameters()} == {
        name for name in named if name.startswith("text.") or ".other_feed_forward." in name
    }
    assert "blocks.1.other_feed_forward.up.weight" in named
    assert not any(name.startswith("blocks.2.other") for name in named)


def test_what_is_refused() -> None:
    def told(**changes: Any) -> list[str]:
        config = config_of(**changes)
        return list(config.faults("here", vocabulary=8, longest=0, is_supplied=False))

    assert not told()
    assert told(text={"shared_layers": 4}) == [
        "here.text.shared_layers: 4 exceeds here.num_layers (3): lower it"
    ]
    (fault,) = told(relative_positions="shared", max_patches=None, size=[12, 12])
    assert fault.startswith("here.relative_positions: shared tells the way from patch to patch")
    with pytest.raises(ValueError, match=r"connector\.kind: resampler gives 64 vectors whatever"):
        EncoderConfig.model_validate(
            {"encoder": config_of().model_dump(), "connector": {"kind": "resampler"}}
        )
