"""The painter and its loss, beside ViTMAE's and VideoMAE's own, and masks as they are drawn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model import torchvision_free

torchvision_free.install()

from transformers import (  # noqa: E402  # behind what lets it be imported
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from model.encoders.image import ImageSpans  # noqa: E402
from model.layers import Layers, initialize  # noqa: E402
from model.objectives.alone import EncoderAlone  # noqa: E402
from model.objectives.patches import (  # noqa: E402
    MaskedPatches,
    MaskedPatchesConfig,
    own_scale,
    patch_loss,
    waves,
)
from tests.model.encoders import test_image, test_video  # noqa: E402
from train.data.masks.kinds import masking  # noqa: E402
from train.data.masks.patches import PatchMasking  # noqa: E402
from train.data.tokens import SpecialTokens  # noqa: E402

OBJECTIVE = MaskedPatchesConfig(kind="masked_patches", width=24, heads=2, feed_forward=40)
SIZES = [(12, 16), (40, 3), (4, 4), (9, 90), (200, 200)]
IMAGES = {
    "one size": {"size": [12, 16], "class_token": "kept"},
    "native": {"max_patches": 12, "table": [3, 4]},
    "native, class dropped": {"max_patches": 12, "table": [3, 4], "class_token": "dropped"},
}


def generators(count: int, seed: int = 0) -> list[np.random.Generator | None]:
    return [np.random.default_rng([seed, number]) for number in range(count)]


def pictures(kind: str, *, share: float = 0.75) -> tuple[Any, Any, Any]:
    """An encoder, the spans of some pictures, and the same masked."""
    config = test_image.tiny_config(**IMAGES[kind])
    spans = test_image.packed(config, test_image.pictures(config, SIZES), sequences=2)
    masks = masking(
        OBJECTIVE.model_copy(update={"share": share}),
        config,
        modality="image",
        seed=1,
        special=SpecialTokens(),
    )
    return config, spans, masks.masked(spans, generators(len(SIZES)))


def cut(spans: ImageSpans, rows: torch.Tensor) -> ImageSpans:
    """One picture of which only these rows are left."""
    count = len(rows)
    return replace(
        spans, patches=spans.patches[rows], places=spans.places[rows], grids=spans.grids[rows],
        cells=torch.arange(count), vectors=torch.arange(count), slots=torch.arange(count),
        num_rows=count, num_vectors=count, longest_rows=count,
    )  # fmt: skip


def test_the_loss_is_vit_maes() -> None:
    """Of masked patches alone, and of pixels that each patch has normed."""
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            image_size=16, patch_size=4, decoder_hidden_size=8, decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2, decoder_intermediate_size=8, norm_pix_loss=True,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    pixels, painted = torch.randn(2, 3, 16, 16), torch.randn(2, 16, 48)
    mask = (torch.rand(2, 16) < 0.75).float()
    wanted = theirs.forward_loss(pixels, painted, mask)
    # Theirs lie color by color within a pixel, ours pixel by pixel within a color.
    patches = theirs.patchify(pixels).view(32, 16, 3).transpose(1, 2).reshape(32, 48)
    ours = painted.view(32, 16, 3).transpose(1, 2).reshape(32, 48)
    hidden = mask.view(-1).nonzero()[:, 0]
    loss = patch_loss(ours[hidden], own_scale(patches[hidden], groups=1))
    torch.testing.assert_close(loss.total / len(hidden), wanted)
    assert len(loss.terms) == len(hidden)
    torch.testing.assert_close(loss.terms.sum(), loss.total)


def test_each_color_of_a_tube_has_its_own_scale() -> None:
    torch.manual_seed(0)
    tubes = torch.randn(5, 3, 2, 4, 4) * torch.tensor([1.0, 5.0, 9.0]).view(1, 3, 1, 1, 1)
    found = own_scale(tubes.view(5, -1), groups=3).view(5, 3, -1)
    for tube, scaled in zip(tubes, found, strict=True):
        for color, mine in zip(tube.view(3, -1), scaled, strict=True):
            wanted = (color - color.mean()) / (color.var() + 1e-6).sqrt()
            torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("kind", IMAGES)
def test_the_encoder_sees_what_is_not_masked_where_it_is(kind: str) -> None:
    """Patch by patch: what is kept and what is masked are all, and each is read at its place."""
    config, spans, found = pictures(kind)
    masked = found.spans
    assert isinstance(masked, MaskedPatches)
    counts = [rows * columns for rows, columns in map(config.grid, SIZES)]
    kept = [max(1, round(0.25 * count)) for count in counts]
    assert masked.masked.tolist() == sorted(set(range(sum(counts))) - set(masked.kept.tolist()))
    owner = np.repeat(np.arange(len(counts)), counts)
    assert np.bincount(owner[masked.kept]).tolist() == kept
    encoder = test_image.tiny_encoder(config)
    vectors = encoder(masked.seen)[: len(masked.kept)]
    begin = 0
    for number, item in enumerate(test_image.pictures(config, SIZES)):
        # One picture whose other patches are cut out of its packed rows.
        alone = test_image.packed(config, [item])
        here = masked.kept[torch.from_numpy(owner[masked.kept] == number)] - sum(counts[:number])
        rows = here + config.class_rows
        if config.class_rows:
            rows = torch.cat([torch.tensor([0]), rows])
        wanted = encoder(cut(alone, rows))[config.class_rows :]
        torch.testing.assert_close(vectors[begin : begin + len(here)], wanted, atol=1e-5, rtol=1e-5)
        begin += len(here)
    assert begin == len(masked.kept)
    # Slots of the masked patches, of which the class row has one where it is kept.
    slots = spans.slots[found.vectors]
    assert len(set(slots.tolist())) == len(found.vectors) == len(masked.masked)
    wanted_rows = spans.vectors[found.vectors]
    torch.testing.assert_close(
        spans.patches[wanted_rows], masked.rows[masked.masked], rtol=0, atol=0
    )


def test_what_is_masked_reaches_nothing_but_the_target() -> None:
    """Other pixels there change what is wanted, and neither vectors nor what is painted."""
    config, _, found = pictures("native")
    model = EncoderAlone("image", config, OBJECTIVE, vocabulary=8).eval()
    initialize(model, seed=1)
    masked = found.spans
    assert isinstance(masked, MaskedPatches)
    before = model.objective.paint(model.encoders["image"](masked.seen), masked)
    _, spans, _ = pictures("native")
    rows = torch.arange(spans.num_rows)[masked.masked]
    spans.patches[rows] = 255 - spans.patches[rows]
    masks = masking(OBJECTIVE, config, modality="image", seed=1, special=SpecialTokens())
    other = masks.masked(spans, generators(len(SIZES))).spans
    assert isinstance(other, MaskedPatches)
    assert torch.equal(other.masked, masked.masked)
    assert torch.equal(model.objective.paint(model.encoders["image"](other.seen), other), before)
    assert not torch.equal(other.rows, masked.rows)
    assert not torch.equal(
        model.objective(model.encoders["image"], other).terms,
        model.objective(model.encoders["image"], masked).terms,
    )


@pytest.mark.parametrize("kind", ["videomae", "videomae, class, post", "timesformer, native"])
def test_tubes_are_masked_at_all_times(kind: str) -> None:
    config = test_video.tiny_config(**test_video.KINDS[kind])
    items = test_video.clips(config)
    spans = test_video.packed(config, items, sequences=2)
    objective = OBJECTIVE.model_copy(update={"share": 0.9})
    masks = masking(objective, config, modality="video", seed=1, special=SpecialTokens())
    assert isinstance(masks, PatchMasking)
    found = masks.masked(spans, generators(len(items)))
    masked = found.spans
    assert isinstance(masked, MaskedPatches)
    begin = 0
    for item in items:
        places = item.grid[0] * item.grid[1]
        hidden = torch.zeros(config.times * places, dtype=torch.bool)
        inside = (masked.masked >= begin) & (masked.masked < begin + len(hidden))
        hidden[masked.masked[inside] - begin] = True
        at_first, *others = hidden.view(config.times, places)
        assert int(at_first.sum()) == places - max(1, round(0.1 * places))
        assert all(torch.equal(at_first, other) for other in others)
        begin += len(hidden)
    encoder = test_video.tiny_encoder(config)
    vectors = encoder(masked.seen)[: len(masked.kept)]
    assert vectors.isfinite().all()
    torch.testing.assert_close(
        spans.patches[: spans.num_rows][masked.masked], masked.rows[masked.masked]
    )
    model = EncoderAlone("video", config, objective, vocabulary=8)
    initialize(model, seed=1)
    loss = model.objective(model.encoders["video"], masked)
    assert len(loss.terms) == len(found.vectors) == len(masked.masked)
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_positions_tell_places_apart() -> None:
    places = torch.cartesian_prod(*(torch.arange(6) for _ in range(3)))
    found = waves(places, 32)
    assert found.shape == (216, 32)
    distances = torch.cdist(found, found) + torch.eye(216) * 10
    assert distances.min() > 1e-2


def test_nothing_masked_is_no_loss() -> None:
    config, spans, _ = pictures("native")
    masks = masking(OBJECTIVE, config, modality="image", seed=1, special=SpecialTokens())
    found = masks.masked(spans, [None] * len(SIZES))
    assert not len(found.vectors)
    model = EncoderAlone("image", config, OBJECTIVE, vocabulary=8)
    initialize(model, seed=1)
    loss = model.objective(model.encoders["image"], found.spans)
    assert loss.total.item() == 0
    loss.total.backward()


def test_layers_are_those_of_a_whole_model() -> None:
    """Drawn from the same streams, so that a random encoder is the same in either."""
    config = test_image.tiny_config(size=[12, 16])
    model = EncoderAlone("image", config, OBJECTIVE, vocabulary=8)
    initialize(model, seed=4)
    alone = torch.nn.Module()
    alone.encoders = torch.nn.ModuleDict(
        {"image": config.build(vocabulary=8, layers=Layers(), recompute="none")}
    )
    initialize(alone, seed=4)
    for name, value in alone.named_parameters():
        assert torch.equal(model.get_parameter(name), value), name
