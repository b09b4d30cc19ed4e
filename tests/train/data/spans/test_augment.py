"""Pictures changed at random: as torchvision changes them, and the same wherever they are read."""

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from model import torchvision_free
from model.encoders.image import ImageEncoderConfig
from tests.pictures import png
from tests.train.data.spans.test_picture import noise, pixels, saved
from train.data.document import Kind
from train.data.sample import Sample, SampleItem
from train.data.spans.augment import OPERATIONS, AugmentConfig, changed, cut_out
from train.data.spans.image import ImageReader, ImageSpansConfig
from train.data.spans.picture import read_picture
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import Draw, SpanCapacity
from train.data.tokens import SpecialTokens

S = 64
ENCODER = ImageEncoderConfig(
    kind="image", width=16, num_layers=1, heads=2, feed_forward=32, patch_pixels=8, max_patches=4
)
AUGMENT = AugmentConfig(area=[0.3, 1.0], flip=0.5, magnitude=20)


@pytest.mark.parametrize("magnitude", [0, 9, 15, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name: str, magnitude: int) -> None:
    torchvision_free.install()
    theirs: Any = importlib.import_module("torchvision.transforms.autoaugment")
    space = theirs.RandAugment()._augmentation_space(31, (20, 28))
    assert list(space) == list(OPERATIONS)
    image, fill = noise(20, 28), (255, 0, 128)
    magnitudes, has_sign = space[name]
    most = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
    for sign in (1, -1):
        way = sign * most if has_sign else most
        how = theirs.InterpolationMode.BILINEAR
        wanted = theirs._apply_op(image, name, way, interpolation=how, fill=list(fill))
        found = OPERATIONS[name](image, magnitude / 30, sign, fill)
        differing = np.abs(np.asarray(wanted).astype(int) - np.asarray(found)).max()
        assert differing <= 1, name  # one level, where a factor is rounded to 32 bits there


def test_parts_are_drawn_as_it_is_said() -> None:
    """In numbers of all sizes and places: areas and aspects evenly, everything inside."""
    numbers = np.arange(100 * 80, dtype=np.uint32).reshape(80, 100)
    image = Image.fromarray((numbers[..., None] >> np.array([16, 8, 0])).astype(np.uint8))
    random = np.random.default_rng(0)
    config = AugmentConfig(area=[0.2, 0.9], aspect=[0.5, 2.0])
    areas: list[float] = []
    corners: list[tuple[float, float]] = []
    for _ in range(400):
        part = cut_out(image, config, random)
        if part is None:
            continue
        areas.append(part.width * part.height / 8000)
        assert 0.49 < part.width / part.height < 2.05
        red, green, blue = np.asarray(part)[0, 0].tolist()
        row, column = divmod((red << 16) + (green << 8) + blue, 100)
        assert row + part.height <= 80
        assert column + part.width <= 100
        corners.append((row / max(1, 80 - part.height), column / max(1, 100 - part.width)))
    assert len(areas) > 380
    assert min(areas) < 0.25
    assert max(areas) > 0.8
    assert np.mean(corners, axis=0) == pytest.approx([0.5, 0.5], abs=0.1)


def test_mirrored_as_often_as_it_is_said() -> None:
    image = noise(8, 8)
    for flip, least, most in ((0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)):
        config = AugmentConfig(flip=flip, operations=0)
        random = np.random.default_rng(1)
        count = 0
        for _ in range(200):
            found = np.asarray(changed(image, config, random))
            is_mirrored = bool((found == np.asarray(image)[:, ::-1]).all())
            assert is_mirrored or (found == np.asarray(image)).all()
            count += is_mirrored
        assert least <= count <= most


def test_a_changed_picture_has_as_many_patches() -> None:
    """Of whatever form, and the colour that comes in from beyond is the one that was asked for."""
    config = AugmentConfig(area=[0.1, 0.4], magnitude=30, operations=3, fill=[1, 2, 3])
    for number, (height, width) in enumerate([(8, 40), (40, 8), (17, 23), (1, 30), (64, 64)]):
        data = png(height, width)
        plain = read_picture(data, ENCODER, size=(height, width))
        random = np.random.default_rng(number)
        found = read_picture(data, ENCODER, size=(height, width), augment=config, random=random)
        assert found.grid == plain.grid
        assert found.patches.shape == plain.patches.shape
        assert (found.patches != plain.patches).any()
    white = saved(Image.new("RGB", (16, 16), "white"))
    for number in range(40):  # until something moves
        random = np.random.default_rng(number)
        whole = AugmentConfig(magnitude=30, operations=1, fill=[1, 2, 3])
        found = pixels(read_picture(white, ENCODER, augment=whole, random=random), P=8)
        if (found == [1, 2, 3]).all(axis=2).any():
            return
    raise AssertionError("nothing came in")


def reader(seed: int = 5, augment: AugmentConfig | None = AUGMENT) -> ImageReader:
    kind = ImageSpansConfig(kind="image", augment=augment)
    capacity = SpanCapacity(tokens=S, spans=16, longest_tokens=4)
    return kind.reader(ENCODER, capacity=capacity, seed=seed, special=SpecialTokens())


def item(document: int, place: int = 1, at: int = 1) -> SampleItem:
    return SampleItem(
        kind=Kind.IMAGE,
        size=(16, 16),
        data=png(16, 16),
        start=at,
        stop=at + 4,
        name="a picture",
        document=document,
        place=place,
    )


def patches(
    items: list[SampleItem], draw: Draw | None, *, source: int = 0, mine: ImageReader | None = None
) -> torch.Tensor:
    """[n, 4, _] of each item, behind another sample without any."""
    mine = mine or reader()
    tokens = np.full(S + 1, 9)
    sample = Sample(id=70 + len(items), tokens=tokens, source=source, items=tuple(items))
    samples = [Sample(id=0, tokens=tokens, source=source), sample]
    spans = FlatSpans.of([mine.choose(each, epoch=0) for each in samples])
    draws = None if draw is None else [draw, draw]
    packed = mine.pack(samples, np.zeros((2, S), np.int64), spans, draws=draws)
    return packed.patches[: 4 * len(items)].reshape(len(items), 4, -1)  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_drawn_depends_on_the_item_alone() -> None:
    """Not on the sequence, its neighbours or threads; on seed, epoch, source, document, place."""
    draw = Draw(epoch=3)
    alone = patches([item(7)], draw)[0]
    among = [item(document, at=1 + 4 * n) for n, document in enumerate([2, 3, 7, 9])]
    for threads in (1, 4):
        mine = dataclasses.replace(reader(), threads=threads)
        assert torch.equal(patches(among, draw, mine=mine)[2], alone)
    others = [
        patches([item(8)], draw)[0],
        patches([item(7, place=2)], draw)[0],
        patches([item(7)], Draw(epoch=4))[0],
        patches([item(7)], Draw(epoch=3, choice=1))[0],
        patches([item(7)], draw, source=1)[0],
        patches([item(7)], draw, mine=reader(seed=6))[0],
    ]
    for number, other in enumerate([*others, patches([item(7)], None)[0]]):
        assert not torch.equal(other, alone), number


def test_nothing_is_changed_where_nothing_trains_or_nobody_asks() -> None:
    plain = read_picture(png(16, 16), ENCODER).patches
    for found in (patches([item(7)], None), patches([item(7)], Draw(0), mine=reader(augment=None))):
        assert (found[0].numpy() == plain).all()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"area": [0.9, 0.1]}, r"\[0\.9, 0\.1\] falls: write the smaller one first"),
        ({"area": [0.0, 1.0]}, "greater than 0"),
        ({"magnitude": 31}, "less than or equal to 30"),
        ({"fill": [0, 0]}, "at least 3 items"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        AugmentConfig(**wrong)
