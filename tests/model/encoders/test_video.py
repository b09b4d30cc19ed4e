"""Packed videos against one video at a time, and both against plain convolutions and attention."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import attention
from model.encoders.grid import nearest
from model.encoders.protocol import SpanLoad
from model.encoders.video import VideoEncoder, VideoEncoderConfig, VideoSpans
from model.layers import Layers, initialize
from model.recompute import Recompute
from tests.model.encoders import plain_video
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.tubes import Clip, pack_clips

SLOTS = 96
TIMESFORMER: dict[str, Any] = {
    "attention": "divided", "positions": "learned", "class_token": "kept", "tube_frames": 1,
    "frames": 3,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "videomae": {"size": [8, 12]},
    "videomae, native": {"max_patches": 6},
    "videomae, class, post": {"max_patches": 6, "class_token": "kept", "norm": "post"},
    "videomae, table": {
        "size": [8, 12], "positions": "learned", "table": [3, 4, 2], "class_token": "dropped",
    },
    "timesformer": TIMESFORMER | {"size": [8, 12]},
    "timesformer, other times": TIMESFORMER | {"size": [8, 12], "table": [2, 2, 3]},
    "timesformer, native": TIMESFORMER | {"max_patches": 6, "table": [5, 3, 2]},
    "timesformer, no class": TIMESFORMER | {"max_patches": 6, "class_token": "none"},
    "timesformer, sines": TIMESFORMER | {
        "size": [8, 12], "positions": "sinusoidal", "tube_frames": 3, "frames": 6,
        "class_token": "dropped", "final_norm": False,
    },
}  # fmt: skip
SIZES = [(9, 8, 12, 360), (1, 24, 3, 40), (40, 4, 4, 1600), (6, 200, 200, 250)]
"""Frames, height, width and milliseconds."""


def tiny_config(**options: Any) -> VideoEncoderConfig:
    shape = {"width": 12, "num_layers": 3, "heads": 3, "feed_forward": 20, "patch_pixels": 4}
    return VideoEncoderConfig.model_validate({"kind": "video", "frames": 4} | shape | options)


def tiny_encoder(config: VideoEncoderConfig, *, dtype: torch.dtype = torch.float32) -> VideoEncoder:
    """In eval mode; biases and norms are random too."""
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none").to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            is_gain = "norm.weight" in name
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * (0.1 if is_gain else 0.3) + (1.0 if is_gain else 0.0))
    return encoder


def clips(config: VideoEncoderConfig, sizes: list[tuple[int, ...]] = SIZES) -> list[Clip]:
    draw = np.random.default_rng(1)
    channels = 3 * config.tube_frames * config.patch_pixels**2
    grids = [config.grid(size[1:3]) for size in sizes]
    return [
        Clip(
            patches=draw.integers(256, size=(config.times * grid[0] * grid[1], channels)).astype(
                np.uint8
            ),
            grid=grid,
        )
        for grid in grids
    ]


def packed(config: VideoEncoderConfig, items: list[Clip], *, sequences: int = 1) -> VideoSpans:
    """The videos one behind the other, dealt over sequences."""
    lengths = [len(item.patches) + config.kept_rows for item in items]
    owners = np.arange(len(items)) * sequences // max(1, len(items))
    starts = np.zeros(len(items), dtype=np.int64)
    for i in range(1, len(items)):
        starts[i] = starts[i - 1] + lengths[i - 1] if owners[i] == owners[i - 1] else 0
    flat = FlatSpans(owners, starts, np.array(lengths, dtype=np.int64))
    room = SpanCapacity(tokens=SLOTS, spans=8, longest_tokens=config.longest_span)
    return pack_clips(
        items, flat, encoder=config, capacity=room, sequences=sequences, sequence_tokens=SLOTS
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_padded", [False, True])
def test_packed_videos_are_seen_as_one_by_one(
    kind: str, is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors and gradients; also in grids as GPUs have them."""
    config = tiny_config(**KINDS[kind])
    together, apart = tiny_encoder(config), tiny_encoder(config)
    items = clips(config)
    alone = torch.cat([apart(packed(config, [item])) for item in items])
    monkeypatch.setattr(attention, "is_padded_on", lambda _: is_padded)
    spans = packed(config, items, sequences=2)
    vectors = together(spans)
    assert len(vectors) == spans.num_vectors == sum(map(config.item_vectors, SIZES))
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
def test_vectors_are_those_of_plain_layers(kind: str) -> None:
    config = tiny_config(**KINDS[kind])
    encoder = tiny_encoder(config)
    for item in clips(config):
        vectors = encoder(packed(config, [item]))
        expected = plain_video.encode(dict(encoder.named_parameters()), config, item)
        torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_frames_is_seen(kind: str) -> None:
    """The same tubes the other way round give other vectors, also of the class row."""
    config = tiny_config(**KINDS[kind])
    encoder, (item, *_) = tiny_encoder(config), clips(config)
    tubes = item.patches.reshape(config.times, -1, item.patches.shape[1])
    turned = Clip(patches=tubes[::-1].reshape(item.patches.shape).copy(), grid=item.grid)
    there, back = (encoder(packed(config, [each])) for each in (item, turned))
    assert (there.mean(dim=0) - back.mean(dim=0)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_microbatch_without_videos_reads_one_of_padding(kind: str) -> None:
    config = tiny_config(**KINDS[kind])
    spans = packed(config, [], sequences=2)
    encoder = tiny_encoder(config)
    vectors = encoder(spans)
    assert vectors.isfinite().all()
    assert len(vectors) == spans.num_vectors
    assert (spans.slots == 2 * SLOTS).all()
    vectors.sum().backward()
    assert all(value.grad is not None for value in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_room_beyond_the_real_rows_is_never_read(kind: str) -> None:
    config = tiny_config(**KINDS[kind])
    encoder, spans = tiny_encoder(config), packed(config, clips(config), sequences=4)
    before = encoder(spans)
    assert spans.num_rows < len(spans.patches)
    for values in (spans.patches, spans.places, spans.grids, spans.cells):
        values[spans.num_rows :] = 7
    spans.vectors[spans.num_vectors :] = 2
    assert torch.equal(before, encoder(spans))


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16(kind: str) -> None:
    """Shapes repeat, and nothing stays behind in fp32."""
    config = tiny_config(**KINDS[kind] | {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]})
    items = clips(config)
    exact = tiny_encoder(config, dtype=torch.float64)(packed(config, items))
    rounded = tiny_encoder(config, dtype=torch.bfloat16)(packed(config, items))
    assert rounded.dtype == torch.bfloat16
    assert (rounded[: len(exact)] - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize(("table", "size"), [(4, 4), (8, 16), (16, 8), (3, 7), (7, 3), (1, 5)])
def test_the_nearest_entry_is_that_of_interpolate(table: int, size: int) -> None:
    expected = F.interpolate(torch.arange(table).float()[None, None], size=size, mode="nearest")
    found = nearest(torch.arange(size), torch.full((size,), size), table=table)
    assert found.tolist() == expected[0, 0].tolist()


def test_what_trains_and_what_the_planner_counts() -> None:
    config = tiny_config(size=[8, 12], init_from="somewhere")
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none")
    fixed = {name for name, value in encoder.named_parameters() if not value.requires_grad}
    assert {name.split(".")[0] for name in fixed} == {"projection", "blocks"}
    assert {name.split(".")[1] for name in fixed if name.startswith("blocks")} == {"0"}
    frozen, trained = config.stacks(SpanLoad(vectors=36, spans=3, longest=12))
    assert (frozen.num_blocks, trained.num_blocks) == (1, 2)
    assert (frozen.trains, trained.trains) == (False, True)
    assert (trained.rows, trained.cells, trained.pairs) == (36, 36, 3 * 12**2)


def test_divided_attention_is_counted_by_its_halves() -> None:
    config = tiny_config(**KINDS["timesformer"], init_from="somewhere")
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none")
    fixed = {name for name, value in encoder.named_parameters() if not value.requires_grad}
    assert {name.split(".")[1] for name in fixed if name.startswith("times")} == {"0"}
    assert {name.split(".")[0] for name in fixed} == {
        *("projection", "class_embedding", "positions", "time_positions", "times", "blocks")
    }
    # Two videos of 3 times of 6 places, and a class row each, which is kept.
    *_, over_time, over_space = config.stacks(SpanLoad(vectors=38, spans=2, longest=19))
    assert (over_time.rows, over_time.cells, over_time.pairs) == (36, 36, 2 * 6 * 3**2)
    assert (over_space.rows, over_space.cells, over_space.pairs) == (38, 42, 2 * 3 * 7**2)
    assert [
        stack.num_blocks for stack in config.stacks(SpanLoad(vectors=1, spans=1, longest=1))
    ] == [*(1, 1, 2, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "size: set it to the height and width of all pictures, or max_patches"),
        ({"size": [8, 3]}, "holds no patch of 4 pixels"),
        ({"size": [8, 8], "frames": 5}, "frames: 5 are not a multiple of tube_frames, which is 2"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


def test_faults() -> None:
    config = tiny_config(max_patches=4, heads=5, trainable_layers=1, fit="crop", table=[1, 1, 1])
    told = list(config.faults("here", vocabulary=8, longest=0, is_supplied=False))
    assert [fault.split(":")[0] for fault in told] == [
        *("here.heads", "here.trainable_layers", "here.fit", "here.table")
    ]


@pytest.mark.parametrize("kind", ["videomae, native", "timesformer"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_gives_the_same_gradients(kind: str, recompute: Recompute) -> None:
    config = tiny_config(**KINDS[kind])
    spans = packed(config, clips(config))
    kinds: tuple[Recompute, ...] = ("none", recompute)
    gradients: list[list[Tensor | None]] = []
    for again in kinds:
        encoder = config.build(vocabulary=8, layers=Layers(), recompute=again)
        initialize(encoder, seed=3)
        encoder(spans).square().sum().backward()
        gradients.append([value.grad for value in encoder.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
