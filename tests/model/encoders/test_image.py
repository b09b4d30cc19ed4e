"""Packed pictures against one picture at a time, and positions between those of the table."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import attention
from model.encoders.grid import native_grid, weights_between
from model.encoders.image import ImageEncoder, ImageEncoderConfig
from model.encoders.protocol import SpanLoad
from model.layers import Layers, initialize
from model.recompute import Recompute
from parallel.engine import decays
from tests.model.encoders import plain_image
from train.data.spans.picture import Picture, pack_pictures
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity

SLOTS = 96
NATIVE: dict[str, Any] = {"max_patches": 12, "table": [3, 4]}
BEIT: dict[str, Any] = {
    "size": [12, 16],
    "class_token": "kept",
    "layer_scale": 0.1,
    "positions": False,
    "relative_positions": "each",
}
KINDS: dict[str, dict[str, Any]] = {
    "one size": {"size": [12, 16]},
    "sixteen rows": {"size": [16, 16]},
    "one size, class kept": {"size": [12, 16], "class_token": "kept"},
    "one size, class dropped": {"size": [12, 16], "class_token": "dropped"},
    "another size than the table's": {"size": [12, 16], "table": [2, 5], "class_token": "kept"},
    "beit": BEIT,
    "beit, of another size": BEIT | {"table": [2, 5], "relative_positions": "shared"},
    "no class, relative": BEIT | {"class_token": "none", "positions": True},
    "clip": {
        "size": [12, 16],
        "class_token": "dropped",
        "embedding_norm": True,
        "final_norm": False,
        "activation": "quick_gelu",
    },
    "more than whole patches": {"size": [15, 17]},
    "native": NATIVE,
    "native, class kept": NATIVE | {"class_token": "kept"},
    "native, class dropped": NATIVE | {"class_token": "dropped"},
    "native, deepnorm": NATIVE | {"norm": "deepnorm", "final_norm": False},
    "native, post": NATIVE | {"norm": "post", "activation": "gelu_tanh"},
}


def tiny_config(**options: Any) -> ImageEncoderConfig:
    shape = {"width": 12, "num_layers": 3, "heads": 3, "feed_forward": 20, "patch_pixels": 4}
    return ImageEncoderConfig.model_validate({"kind": "image"} | shape | options)


def tiny_encoder(config: ImageEncoderConfig, *, dtype: torch.dtype = torch.float32) -> ImageEncoder:
    """In eval mode; biases and norms are random too."""
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none").to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            is_gain = "norm.weight" in name
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            wide = 1.0 if "relative_bias" in name else 0.3
            parameter.copy_(noise * (0.1 if is_gain else wide) + (1.0 if is_gain else 0.0))
    return encoder


def pictures(config: ImageEncoderConfig, sizes: list[tuple[int, int]]) -> list[Picture]:
    draw = np.random.default_rng(1)
    grids = [config.grid(size) for size in sizes]
    shape = 3 * config.patch_pixels**2
    return [
        Picture(
            patches=draw.integers(256, size=(rows * columns, shape)).astype(np.uint8),
            grid=(rows, columns),
        )
        for rows, columns in grids
    ]


def packed(config: ImageEncoderConfig, items: list[Picture], *, sequences: int = 1):
    """The pictures one behind the other, dealt over sequences."""
    lengths = [len(item.patches) + (config.class_token == "kept") for item in items]
    owners = np.arange(len(items)) * sequences // max(1, len(items))
    starts = np.zeros(len(items), dtype=np.int64)
    for i in range(1, len(items)):
        starts[i] = starts[i - 1] + lengths[i - 1] if owners[i] == owners[i - 1] else 0
    flat = FlatSpans(owners, starts, np.array(lengths, dtype=np.int64))
    room = SpanCapacity(tokens=SLOTS, spans=8, longest_tokens=config.longest_span)
    return pack_pictures(
        items, flat, encoder=config, capacity=room, sequences=sequences, sequence_tokens=SLOTS
    )


SIZES = [(12, 16), (40, 3), (4, 4), (9, 90), (200, 200)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_padded", [False, True])
def test_packed_pictures_are_read_as_one_by_one(
    kind: str, is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors and gradients; also in grids as GPUs have them."""
    config = tiny_config(**KINDS[kind])
    together, apart = tiny_encoder(config), tiny_encoder(config)
    items = pictures(config, SIZES)
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
    for item in pictures(config, SIZES):
        vectors = encoder(packed(config, [item]))
        expected = plain_image.encode(dict(encoder.named_parameters()), config, item)
        torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)


def test_pictures_of_one_size_have_no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that kernels are used which take none; on GPUs where the rows of a grid are theirs."""
    seen: list[bool] = []
    attend = attention.attend

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(kwargs["bias"] is None)
        return attend(*args, **kwargs)

    monkeypatch.setattr(attention, "attend", watched)
    for options, is_padded, none in (
        ({"size": [16, 16]}, False, True),
        ({"size": [16, 16]}, True, True),  # 16 rows, and spans that are padding
        ({"size": [12, 16]}, True, False),
        (NATIVE, False, False),
    ):
        monkeypatch.setattr(attention, "is_padded_on", lambda _, padded=is_padded: padded)
        config, seen[:] = tiny_config(**options), []
        tiny_encoder(config)(packed(config, pictures(config, SIZES[:3])))
        assert seen == [none] * config.num_layers


def test_a_microbatch_without_pictures_reads_one_of_padding() -> None:
    for options in KINDS.values():
        config = tiny_config(**options)
        spans = packed(config, [], sequences=2)
        vectors = tiny_encoder(config)(spans)
        assert vectors.isfinite().all()
        assert len(vectors) == spans.num_vectors
        assert (spans.slots == 2 * SLOTS).all()


def test_room_beyond_the_real_rows_is_never_read() -> None:
    config = tiny_config(**KINDS["native, class dropped"])
    encoder, spans = tiny_encoder(config), packed(config, pictures(config, SIZES))
    before = encoder(spans)
    assert spans.num_rows < len(spans.patches)
    for values in (spans.patches, spans.places, spans.grids, spans.cells):
        values[spans.num_rows :] = 7
    spans.vectors[spans.num_vectors :] = 2
    assert torch.equal(before, encoder(spans))


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16(kind: str) -> None:
    """Pixels are normalised before they are rounded; nothing else stays behind in fp32."""
    config = tiny_config(**KINDS[kind] | {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]})
    items = pictures(config, SIZES)
    exact = tiny_encoder(config, dtype=torch.float64)(packed(config, items))
    rounded = tiny_encoder(config, dtype=torch.bfloat16)(packed(config, items))
    assert rounded.dtype == torch.bfloat16
    assert (rounded[: len(exact)] - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((224, 224), 196, (14, 14)),
        ((225, 231), 300, (14, 14)),
        ((232, 224), 300, (15, 14)),  # half a patch is rounded up
        ((448, 448), 196, (14, 14)),
        ((448, 224), 98, (14, 7)),
        ((1, 10_000), 256, (1, 256)),
        ((10_000, 1), 256, (256, 1)),
        ((3, 5), 256, (1, 1)),
        ((1000, 1001), 1, (1, 1)),
        ((600, 10), 9, (9, 1)),
    ],
)
def test_native_grids(size: tuple[int, int], most: int, grid: tuple[int, int]) -> None:
    assert native_grid(*size, patch_pixels=16, most=most) == grid


def test_native_grids_fit_and_keep_the_aspect() -> None:
    draw = np.random.default_rng(0)
    for _ in range(2000):
        height, width, most = (int(draw.integers(1, 3000)) for _ in range(3))
        rows, columns = native_grid(height, width, patch_pixels=16, most=most)
        assert rows >= 1
        assert columns >= 1
        assert rows * columns <= most
        if rows > 8 and columns > 8:
            assert rows / columns == pytest.approx(height / width, rel=0.15)


@pytest.mark.parametrize(("table", "size"), [(4, 4), (14, 24), (24, 14), (3, 1), (1, 5), (7, 16)])
@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_weights_are_those_of_interpolate(
    table: int, size: int, kind: Literal["linear", "cubic"]
) -> None:
    values = torch.randn(1, 2, table, 3, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(values, size=(size, 3), mode=f"bi{kind}")
    places, sizes = torch.arange(size), torch.full((size,), size)
    weights = weights_between(places, sizes, table=table, kind=kind)
    torch.testing.assert_close(torch.einsum("rt,bctw->bcrw", weights, values), expected)


def test_what_trains_and_what_the_planner_counts() -> None:
    config = tiny_config(size=[12, 16], class_token="dropped", init_from="somewhere")
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none")
    fixed = {name for name, value in encoder.named_parameters() if not value.requires_grad}
    assert {name.split(".")[0] for name in fixed} == {
        *("projection", "class_embedding", "positions", "blocks")
    }
    assert {name.split(".")[1] for name in fixed if name.startswith("blocks")} == {"0"}
    frozen, trained = config.stacks(SpanLoad(vectors=36, spans=3, longest=12))
    assert (frozen.num_blocks, trained.num_blocks) == (1, 2)
    assert (trained.rows, trained.cells, trained.pairs) == (39, 39, 3 * 13**2)
    assert trained.trains
    assert not frozen.trains
    assert not trained.bias_trains
    for relative, num_trained in (("shared", 0), ("each", 2)):
        config = tiny_config(**BEIT | {"relative_positions": relative, "init_from": "somewhere"})
        encoder = config.build(vocabulary=8, layers=Layers(), recompute="none")
        asked = [value.requires_grad for value in encoder.patch_biases.parameters()]
        assert sum(asked) == num_trained
        frozen, trained = config.stacks(SpanLoad(vectors=39, spans=3, longest=13))
        assert (frozen.bias_trains, trained.bias_trains) == (False, num_trained > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "size: set it to the height and width of all pictures, or max_patches"),
        ({"size": [8, 8], "max_patches": 4}, "one of the two"),
        ({"size": [8, 3]}, "holds no patch of 4 pixels"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


def test_faults() -> None:
    config = tiny_config(max_patches=4, heads=5, trainable_layers=1, fit="crop")
    told = list(config.faults("here", vocabulary=8, longest=0, is_supplied=False))
    assert [fault.split(":")[0] for fault in told] == [
        *("here.heads", "here.trainable_layers", "here.fit")
    ]
    config = tiny_config(max_patches=4, relative_positions="each")
    (alone,) = config.faults("here", vocabulary=8, longest=0, is_supplied=False)
    assert alone.startswith("here.relative_positions: each is for pictures of one size")
    config = tiny_config(size=[8, 8], resized=[10, 7])
    (alone,) = config.faults("here", vocabulary=8, longest=0, is_supplied=False)
    assert alone.startswith("here.resized: [10, 7] is smaller than here.size ([8, 8])")


def test_first_values_and_what_decays() -> None:
    config = tiny_config(**BEIT | {"positions": True, "embedding_norm": True})
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none")
    initialize(encoder, seed=3)
    values = dict(encoder.named_parameters())
    assert (values["blocks.1.feed_forward_scale.weight"] == 0.1).all()
    assert 0.01 < values["projection.weight"].std() < 0.03
    decaying = {name for name, value in values.items() if decays(name, value)}
    matrices = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    layers = range(config.num_layers)
    blocks = {f"blocks.{layer}.{name}.weight" for layer in layers for name in matrices}
    assert decaying == {"projection.weight", *blocks}


@pytest.mark.parametrize("kind", ["beit", "clip", "native, class dropped"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_gives_the_same_gradients(kind: str, recompute: Recompute) -> None:
    config = tiny_config(**KINDS[kind])
    spans = packed(config, pictures(config, SIZES))
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
