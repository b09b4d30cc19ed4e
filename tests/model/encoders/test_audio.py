"""Packed sounds against one sound at a time, and both against plain convolutions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import attention
from model.encoders.audio import AudioEncoder, AudioEncoderConfig, AudioSpans
from model.encoders.fronts import LogMelConfig, WaveformConfig, sinusoids
from model.encoders.protocol import SpanLoad
from model.layers import Layers
from train.data.spans.hearing import Sound, in_blocks, pack_sounds
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity

SLOTS = 64
SMALL: dict[str, Any] = {
    "kind": "waveform", "channels": [6, 5, 4], "kernels": [10, 3, 2], "strides": [5, 2, 2],
    "position_kernel": 6, "position_groups": 3,
}  # fmt: skip
"""Rows of 20 samples."""
MEL: dict[str, Any] = {"front": {"kind": "log_mel", "mels": 7}, "max_seconds": 0.2}
WAVE: dict[str, Any] = {"front": SMALL, "max_seconds": 0.02}
KINDS: dict[str, dict[str, Any]] = {
    "mel": MEL,
    "mel, padded": MEL | {"padded_seconds": 0.25},
    "mel, table, norms": MEL | {"table_rows": 30, "embedding_norm": True, "norm": "post"},
    "wave": WAVE,
    "wave, padded": WAVE | {"padded_seconds": 0.022},
    "wave, each": WAVE | {"front": SMALL | {"norm": "each", "biases": True}},
    "wave, base": WAVE | {"norm": "post", "embedding_norm": True, "final_norm": False},
    "wave, odd": WAVE | {
        "front": SMALL | {"position_kernel": 5, "projection_norm": False, "normalized": False},
    },
}  # fmt: skip


def tiny_config(**options: Any) -> AudioEncoderConfig:
    shape = {"width": 12, "num_layers": 3, "heads": 3, "feed_forward": 20}
    return AudioEncoderConfig.model_validate({"kind": "audio"} | shape | options)


def tiny_encoder(config: AudioEncoderConfig, *, dtype: torch.dtype = torch.float32) -> AudioEncoder:
    """In eval mode; biases and norms are random too."""
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none").to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            is_gain = name.endswith("norm.weight") or ("norms." in name and "weight" in name)
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * (0.1 if is_gain else 0.3) + (1.0 if is_gain else 0.0))
    return encoder


def counts_of(config: AudioEncoderConfig) -> list[int]:
    """Samples of sounds: the longest, some of odd lengths, one of a single sample."""
    most = config.most_samples
    return [most, most // 2 + 7, 1, most // 3, most // 5 * 2 - 1, most - 1]


def waves(config: AudioEncoderConfig) -> list[Any]:
    draw = np.random.default_rng(1)
    return [draw.uniform(-0.5, 0.5, n).astype(np.float32) for n in counts_of(config)]


def packed(config: AudioEncoderConfig, items: list[Sound], *, sequences: int = 1) -> AudioSpans:
    """The sounds one behind the other, dealt over sequences."""
    lengths = [config.front.num_rows(item.samples) for item in items]
    owners = np.arange(len(items)) * sequences // max(1, len(items))
    starts = np.zeros(len(items), dtype=np.int64)
    for i in range(1, len(items)):
        starts[i] = starts[i - 1] + lengths[i - 1] if owners[i] == owners[i - 1] else 0
    flat = FlatSpans(owners, starts, np.array(lengths, dtype=np.int64))
    room = SpanCapacity(tokens=SLOTS, spans=8, longest_tokens=config.longest_span)
    return pack_sounds(
        items, flat, encoder=config, capacity=room, sequences=sequences, sequence_tokens=SLOTS
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_padded", [False, True])
def test_packed_sounds_are_heard_as_one_by_one(
    kind: str, is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors and gradients; also in grids as GPUs have them."""
    config = tiny_config(**KINDS[kind])
    together, apart = tiny_encoder(config), tiny_encoder(config)
    items = [in_blocks(wave, config) for wave in waves(config)]
    alone = torch.cat([apart(packed(config, [item])) for item in items])
    monkeypatch.setattr(attention, "is_padded_on", lambda _: is_padded)
    spans = packed(config, items, sequences=2)
    vectors = together(spans)
    sizes = [(count, config.rate) for count in counts_of(config)]
    assert len(vectors) == spans.num_vectors == sum(map(config.item_vectors, sizes))
    torch.testing.assert_close(vectors, alone, rtol=1e-5, atol=1e-5)
    weigh = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3))
    (vectors * weigh).sum().backward()
    (alone * weigh).sum().backward()
    for (name, a), b in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        scale = max(1.0, b.grad.abs().max().item())
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_plain_convolutions(kind: str) -> None:
    """One sound by torch's own convolutions, group norm and attention."""
    config = tiny_config(**KINDS[kind])
    encoder = tiny_encoder(config)
    weights = dict(encoder.named_parameters())
    for wave in waves(config):
        item = in_blocks(wave, config)
        expected = by_hand(weights, config, item)[: config.front.num_rows(len(wave))]
        vectors = encoder(packed(config, [item]))
        torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)


def by_hand(weights: Mapping[str, Tensor], config: AudioEncoderConfig, item: Sound) -> Tensor:
    front, E = config.front, config.width
    whole = max(item.samples, config.padded_samples)
    x = torch.from_numpy(item.blocks)

    def convolve(x: Tensor, i: int, kernel: int, stride: int, padding: int) -> Tensor:
        weight = weights[f"front.convolutions.{i}.weight"]
        bias = weights.get(f"front.convolutions.{i}.bias")
        weight = weight.view(len(weight), -1, kernel)
        return F.conv1d(x, weight, bias, stride=stride, padding=padding)

    def norm(x: Tensor, name: str, epsilon: float) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)

    if isinstance(front, LogMelConfig):
        x = x.view(-1, front.mels)[: front.num_frames(whole)].T[None]
        x = F.gelu(convolve(x, 0, 3, 1, 1))
        x = F.gelu(convolve(x, 1, 3, 2, 1))[0].T
        x = x + weights["positions.weight"][: len(x)]
    else:
        x = x.view(1, 1, -1)[..., : max(whole, front.least_samples)]
        for i, (kernel, stride) in enumerate(zip(front.kernels, front.strides, strict=True)):
            x = convolve(x, i, kernel, stride, 0)
            if front.norm == "each":
                x = norm(x.mT, f"front.norms.{i}", 1e-5).mT
            elif i == 0:
                gain, bias = weights["front.norms.0.weight"], weights["front.norms.0.bias"]
                x = F.group_norm(x, len(gain), gain, bias, 1e-5)
            x = F.gelu(x)
        x = x[0].T
        if front.projection_norm:
            x = norm(x, "front.projection_norm", front.norm_epsilon)
        x = x @ weights["front.projection.weight"].T + weights["front.projection.bias"]
        kernel, groups = front.position_kernel, front.position_groups
        told = F.conv1d(
            x.T[None], weights["positions.weight"], weights["positions.bias"],
            padding=kernel // 2, groups=groups,
        )  # fmt: skip
        x = x + F.gelu(told[0, :, : len(x)]).T
    if config.embedding_norm:
        x = norm(x, "embedding_norm", config.norm_epsilon)
    for i in range(config.num_layers):
        x = block_by_hand(weights, f"blocks.{i}.", config, x)
    if config.final_norm:
        x = norm(x, "final_norm", config.norm_epsilon)
    assert x.shape[1] == E
    return x


def block_by_hand(
    weights: Mapping[str, Tensor], prefix: str, config: AudioEncoderConfig, x: Tensor
) -> Tensor:
    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{prefix}{name}.weight"].T + weights[f"{prefix}{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, config.norm_epsilon)

    def attend(x: Tensor) -> Tensor:
        parts = linear(x, "attention.qkv").view(len(x), config.heads, 3, -1)
        query, key, value = parts.permute(2, 1, 0, 3)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        mixed = torch.softmax(scores, dim=-1) @ value
        return linear(mixed.transpose(0, 1).reshape(len(x), -1), "attention.out")

    def feed_forward(x: Tensor) -> Tensor:
        return linear(F.gelu(linear(x, "feed_forward.up")), "feed_forward.down")

    if config.norm == "pre":
        x = x + attend(norm(x, "attention_norm"))
        return x + feed_forward(norm(x, "feed_forward_norm"))
    x = norm(x + attend(x), "attention_norm")
    return norm(x + feed_forward(x), "feed_forward_norm")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_sounds_goes_nowhere(kind: str) -> None:
    """Blocks, rows and vectors behind the real ones, and values that are no numbers in them."""
    config = tiny_config(**KINDS[kind])
    encoder = tiny_encoder(config)
    spans = packed(config, [in_blocks(wave, config) for wave in waves(config)])
    before = encoder(spans)
    spans.blocks[spans.num_blocks :] = float("nan")
    spans.rows[spans.num_rows :] = 10**9
    spans.vectors[spans.num_vectors :] = 2
    assert encoder(spans).equal(before)


@pytest.mark.parametrize("kind", KINDS)
def test_in_16_bits_shapes_repeat_and_vectors_stay(kind: str) -> None:
    config = tiny_config(**KINDS[kind])
    encoder = tiny_encoder(config, dtype=torch.bfloat16)
    items = [in_blocks(wave, config) for wave in waves(config)]
    spans = packed(config, items)
    vectors = encoder(spans)
    assert vectors.dtype == torch.bfloat16
    alone = torch.cat([
        encoder(packed(config, [item]))[: config.front.num_rows(item.samples)] for item in items
    ])  # fmt: skip
    found = vectors[: spans.num_vectors].float()
    torch.testing.assert_close(found, alone.float(), rtol=0.1, atol=0.1)


def test_no_sound_is_one_of_silence_for_the_bin() -> None:
    for kind in KINDS.values():
        config = tiny_config(**kind)
        spans = packed(config, [])
        assert spans.num_spans == 1
        assert set(spans.slots.tolist()) == {SLOTS}
        vectors = tiny_encoder(config)(spans)
        assert len(vectors) == spans.num_vectors
        assert vectors.isfinite().all()


WAV2VEC = WaveformConfig(kind="waveform")


@pytest.mark.parametrize("count", [1, 399, 400, 401, 719, 720, 16_000, 31_999, 480_000])
def test_rows_are_those_of_the_seven_convolutions(count: int) -> None:
    x = torch.zeros(1, 1, max(count, 400))
    for kernel, stride in zip(WAV2VEC.kernels, WAV2VEC.strides, strict=True):
        x = F.conv1d(x, torch.zeros(1, 1, kernel), stride=stride)
        if stride == 5:
            assert WAV2VEC.num_frames(count) == x.shape[-1]
    assert WAV2VEC.num_rows(count) == x.shape[-1]
    assert WAV2VEC.num_rows(count) <= WAV2VEC.num_blocks(count)
    assert WAV2VEC.num_blocks(count) <= WAV2VEC.num_rows(count) + WAV2VEC.more_blocks
    assert (WAV2VEC.block_samples, WAV2VEC.least_samples) == (320, 400)


@pytest.mark.parametrize(
    ("size", "vectors"),
    [((1, 8000), 1), ((8000, 8000), 50), ((44_100, 44_100), 50), ((16_001, 16_000), 51)],
)
def test_slots_follow_from_samples_and_rate(size: tuple[int, int], vectors: int) -> None:
    assert tiny_config().item_vectors(size) == vectors


def test_a_sound_that_is_too_long_is_refused() -> None:
    config = tiny_config(max_seconds=1.0)
    assert config.item_vectors((44_100, 44_100)) == config.longest_span == 50
    with pytest.raises(ValueError, match=r"a sound of 1\.001 seconds, and its encoder reads 1 at"):
        config.item_vectors((44_141, 44_100))


def test_positions_begin_as_sines() -> None:
    table = torch.empty(5, 8)
    sinusoids(table, torch.Generator())
    assert table[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    torch.testing.assert_close(table[3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(table[3, 7], torch.tensor(3e-4).cos())


def test_only_the_last_layers_train() -> None:
    config = tiny_config(**WAVE, trainable_layers=1, init_from="x")
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none")
    trained = {name.split(".")[0] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"blocks", "final_norm"}
    assert not any(p.requires_grad for p in encoder.blocks[:2].parameters())
    frozen, last = config.stacks(SpanLoad(vectors=36, spans=3, longest=12))
    assert (frozen.num_blocks, frozen.trains) == (2, False)
    assert (last.num_blocks, last.rows, last.cells, last.pairs) == (1, 36, 36, 432)


def test_silence_is_work() -> None:
    config = tiny_config(**MEL, padded_seconds=0.4)
    (_, stack) = config.stacks(SpanLoad(vectors=9, spans=3, longest=5))
    assert (stack.rows, stack.cells, stack.pairs) == (60, 60, 1200)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"padded_seconds": 3.0}, "e.padded_seconds: 3 is less than e.max_seconds (30)"),
        ({"table_rows": 9}, "e.table_rows: 9 positions are fewer than the 1500 rows"),
        ({"heads": 5}, "e.heads: 5 heads do not divide width 12"),
        ({"trainable_layers": 1}, "e.trainable_layers: 1 of 3 layers would train"),
        (WAVE | {"table_rows": 9}, "e.table_rows: positions are told by a convolution"),
        (
            WAVE | {"front": SMALL | {"position_groups": 5}},
            "e.front.position_groups: 5 groups do not divide width 12",
        ),
    ],
)
def test_faults(options: dict[str, Any], told: str) -> None:
    found = tiny_config(**options).faults("e", vocabulary=8, longest=0, is_supplied=False)
    assert [fault for fault in found if fault.startswith(told)]


@pytest.mark.parametrize(
    ("front", "told"),
    [
        ({"strides": [5, 2]}, "strides: 3 channels, 3 kernels and 2 strides"),
        ({"kernels": [4, 3, 2]}, "strides: one is larger than its kernel"),
        (
            {"kernels": [4096] * 3, "strides": [4096] * 3},
            "strides: 68719476736 samples a row are too many",
        ),
    ],
)
def test_convolutions_that_do_not_fit(front: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny_config(front=SMALL | front)
