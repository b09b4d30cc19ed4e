"""Packed pictures against one picture at a time, and positions between those of the table."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import attention
from model.encoders.grid import cubic_weights, native_grid
from model.encoders.image import ImageEncoder, ImageEncoderConfig
from model.encoders.protocol import SpanLoad
from model.layers import Layers
from train.data.spans.picture import Picture, pack_pictures
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity

SLOTS = 64
NATIVE: dict[str, Any] = {"max_patches": 12, "table": [3, 4]}
KINDS: dict[str, dict[str, Any]] = {
    "one size": {"size": [12, 16]},
    "one size, class kept": {"size": [12, 16], "class_token": "kept"},
    "one size, class dropped": {"size": [12, 16], "class_token": "dropped"},
    "another size than the table's": {"size": [12, 16], "table": [2, 5], "class_token": "kept"},
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
            parameter.copy_(noise * (0.1 if is_gain else 0.3) + (1.0 if is_gain else 0.0))
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
    """One picture by torch's own convolution, interpolation and attention."""
    config = tiny_config(**KINDS[kind])
    encoder = tiny_encoder(config)
    for item in pictures(config, SIZES):
        vectors = encoder(packed(config, [item]))
        expected = by_hand(dict(encoder.named_parameters()), config, item)
        torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)


def by_hand(weights: dict[str, Tensor], config: ImageEncoderConfig, item: Picture) -> Tensor:
    (rows, columns), P, E = item.grid, config.patch_pixels, config.width
    patches = torch.from_numpy(item.patches).float().view(rows, columns, 3, P, P)
    image = patches.permute(2, 0, 3, 1, 4).reshape(1, 3, rows * P, columns * P) / 255
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    image = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    kernel = weights["embedding.weight"].view(E, 3, P, P)
    x = F.conv2d(image, kernel, weights["embedding.bias"], stride=P).flatten(2)[0].T
    has_class = config.class_token != "none"
    table = weights["positions.weight"]
    places = table[int(has_class) :].T.view(1, E, *config.table_grid)
    if item.grid != config.table_grid:
        places = F.interpolate(places, size=item.grid, mode="bicubic")
    x = x + places.flatten(2)[0].T
    if has_class:
        x = torch.cat([weights["class_row.weight"] + table[:1], x])
    alpha = (2 * config.num_layers) ** 0.25 if config.norm == "deepnorm" else 1.0
    for i in range(config.num_layers):
        part = {
            name.removeprefix(f"blocks.{i}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{i}.")
        }

        def linear(x: Tensor, name: str, part: dict[str, Tensor] = part) -> Tensor:
            return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]

        def norm(x: Tensor, name: str, part: dict[str, Tensor] = part) -> Tensor:
            weight, bias = part[f"{name}.weight"], part[f"{name}.bias"]
            return F.layer_norm(x, (E,), weight, bias, config.norm_epsilon)

        def attend(x: Tensor, linear: Any = linear) -> Tensor:
            parts = linear(x, "attention.qkv").view(len(x), config.heads, 3, -1)
            query, key, value = parts.permute(2, 1, 0, 3)
            scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
            mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(x), E)
            return linear(mixed, "attention.out")

        def feed(x: Tensor, linear: Any = linear) -> Tensor:
            how = "tanh" if config.activation == "gelu_tanh" else "none"
            return linear(
                F.gelu(linear(x, "feed_forward.up"), approximate=how), "feed_forward.down"
            )

        for branch, name in ((attend, "attention_norm"), (feed, "feed_forward_norm")):
            if config.norm == "pre":
                x = x + branch(norm(x, name))
            else:
                x = norm(alpha * x + branch(x), name)
    if config.final_norm:
        weight, bias = weights["final_norm.weight"], weights["final_norm.bias"]
        x = F.layer_norm(x, (E,), weight, bias, config.norm_epsilon)
    return x[1:] if config.class_token == "dropped" else x


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
def test_cubic_weights_are_those_of_interpolate(table: int, size: int) -> None:
    values = torch.randn(1, 2, table, 3, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(values, size=(size, 3), mode="bicubic")
    places, sizes = torch.arange(size), torch.full((size,), size)
    weights = cubic_weights(places, sizes, table=table)
    torch.testing.assert_close(torch.einsum("rt,bctw->bcrw", weights, values), expected)


def test_what_trains_and_what_the_planner_counts() -> None:
    config = tiny_config(size=[12, 16], class_token="dropped", init_from="somewhere")
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none")
    fixed = {name for name, value in encoder.named_parameters() if not value.requires_grad}
    assert {name.split(".")[0] for name in fixed} == {
        *("embedding", "class_row", "positions", "blocks")
    }
    assert {name.split(".")[1] for name in fixed if name.startswith("blocks")} == {"0"}
    frozen, trained = config.stacks(SpanLoad(vectors=36, spans=3, longest=12))
    assert (frozen.num_blocks, trained.num_blocks) == (1, 2)
    assert (trained.rows, trained.cells, trained.pairs) == (39, 39, 3 * 13**2)
    assert trained.trains
    assert not frozen.trains


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "size: set it to the height and width of all pictures, or max_patches"),
        ({"size": [8, 8], "max_patches": 4}, "one of the two"),
        ({"size": [8, 10]}, "not in whole patches of 4 pixels"),
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
