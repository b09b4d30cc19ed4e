"""Connectors that read items whole, with an adapter of its own for each row of a batch."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from model.adapters.kinds import LoraConfig
from model.adapters.several import put_adapter, rows_use
from model.adapters.tuning import Names, Tuning
from model.encoders.image import ImageEncoderConfig, ImageSpans
from model.layers import initialize
from model.semicausal import ModelConfig, SemiCausal
from train.data.spans.picture import Picture, pack_pictures
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity

S, Q = 16, 3
IMAGE = ImageEncoderConfig(
    kind="image", width=16, num_layers=1, heads=2, feed_forward=32, patch_pixels=4, max_patches=6
)
GRIDS = [[(1, 1), (2, 3)], [(2, 2)], [(3, 2), (1, 2), (1, 1)]]
"""Of the pictures of three sequences."""


@pytest.fixture(scope="module")
def model() -> SemiCausal:
    decoder = {
        "vocabulary": 32, "width": 16, "num_layers": 1, "heads": 2, "feed_forward": 32,
        "max_tokens": S,
    }  # fmt: skip
    connector = {"kind": "resampler", "queries": Q}
    parts = {"image": {"encoder": IMAGE.model_dump(), "connector": connector}}
    config = ModelConfig.model_validate({"decoder": decoder, "encoders": parts})
    model = SemiCausal(config).double().eval()
    initialize(model, seed=1)
    lora = LoraConfig(rank=2, targets=["connectors"])
    shapes = Tuning(lora=lora).adapter_shapes(Names.of(config))
    for seed, name in enumerate(("first", "second")):
        draw = torch.Generator().manual_seed(seed)
        values = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
        put_adapter(model, name, lora, values)
    return model.double()


def packed(rows: Sequence[int]) -> ImageSpans:
    """The pictures of some of the sequences."""
    pictures: list[Picture] = []
    places: list[tuple[int, int]] = []
    for row, sequence in enumerate(rows):
        draw = np.random.default_rng(sequence)
        for number, grid in enumerate(GRIDS[sequence]):
            patches = draw.integers(256, size=(grid[0] * grid[1], 48)).astype(np.uint8)
            pictures.append(Picture(patches=patches, grid=grid))
            places.append((row, 1 + 4 * number))
    owners, starts = np.array(places).T
    return pack_pictures(
        pictures,
        FlatSpans(owners, starts, np.full(len(owners), Q)),
        encoder=IMAGE,
        capacity=SpanCapacity(tokens=S, spans=4, longest_tokens=Q, item_slots=Q),
        sequences=len(rows),
        sequence_tokens=S,
    )


@torch.no_grad()
def inputs_of(model: SemiCausal, rows: Sequence[int], names: Sequence[str | None]) -> Tensor:
    tokens = torch.zeros(len(rows), S, dtype=torch.long)
    with rows_use(model, names, slots=S):
        return model.inputs(tokens, {"image": packed(rows)})


def test_each_row_has_its_own(model: SemiCausal) -> None:
    names = ["second", None, "first"]
    together = inputs_of(model, [0, 1, 2], names)
    for row, name in enumerate(names):
        (alone,) = inputs_of(model, [row], [name])
        torch.testing.assert_close(together[row], alone)
        (other,) = inputs_of(model, [row], ["first" if name is None else None])
        assert (alone - other).abs().max() > 1e-3, "it does something"
