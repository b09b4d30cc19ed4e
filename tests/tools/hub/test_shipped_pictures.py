"""The code of pictures that goes along with an export computes what ours does."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.model.encoders.test_image import KINDS, packed, pictures, tiny_config, tiny_encoder
from tools.hub.shipped.image_semicausal import ImageEncoder
from tools.hub.shipped.pictures_semicausal import patches_of
from train.data.spans.picture import read_picture

SIZES = [(12, 16), (3, 40), (20, 9), (1, 1)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_vectors_are_those_of_our_encoder(kind: str) -> None:
    config = tiny_config(**KINDS[kind])
    ours = tiny_encoder(config)
    theirs = ImageEncoder(config.model_dump()).eval()
    theirs.load_state_dict(ours.state_dict())
    read = pictures(config, SIZES)
    most = max(len(picture.patches) for picture in read)
    patches = torch.full((len(read), most, 48), 200, dtype=torch.uint8)
    for number, picture in enumerate(read):
        patches[number, : len(picture.patches)] = torch.from_numpy(picture.patches)
    grids = torch.tensor([picture.grid for picture in read])
    found = theirs(patches, grids)
    assert theirs.counts(grids).tolist() == [config.item_vectors(size) for size in SIZES]
    wanted = ours(packed(config, read))[: len(found)]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


RANDOM = np.random.default_rng(0)
NOISE = Image.fromarray(RANDOM.integers(0, 256, (23, 37, 3), np.uint8))
EXIF = Image.Exif()
EXIF[0x0112] = 6
CLEAR = Image.merge("RGBA", [*NOISE.split(), NOISE.getchannel(0)])
FILES = {
    "plain": saved(NOISE),
    "jpeg": saved(NOISE, "JPEG"),
    "turned": saved(NOISE, exif=EXIF),
    "turned tiff": saved(NOISE, "TIFF", exif=EXIF),
    "clear": saved(CLEAR),
    "16 bits": saved(Image.fromarray(RANDOM.integers(0, 1 << 16, (9, 14), np.uint16))),
    "cmyk": saved(NOISE.convert("CMYK"), "JPEG"),
    "palette": saved(NOISE.quantize(16), "GIF"),
    "animated": saved(NOISE, "GIF", save_all=True, append_images=[CLEAR.convert("RGB")]),
    "wide": saved(Image.fromarray(RANDOM.integers(0, 256, (1, 900, 3), np.uint8))),
    # Fitted whole it would have more than 2^24 pixels: of the middle alone is computed.
    "very wide": saved(Image.fromarray(RANDOM.integers(0, 256, (1, 90_000, 3), np.uint8))),
}
READ: dict[str, dict[str, Any]] = {
    "native": {"max_patches": 30},
    "one size": {"size": [16, 24]},
    "cut out of the middle": {"size": [16, 16], "fit": "crop", "resized": [20, 20]},
    "bilinear, more than whole patches": {"size": [15, 17], "resample": "bilinear"},
}


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("name", FILES)
def test_patches_are_those_of_training(name: str, how: str) -> None:
    config = tiny_config(**READ[how])
    wanted = read_picture(FILES[name], config)
    patches, grid = patches_of(Image.open(io.BytesIO(FILES[name])), config.model_dump())
    assert grid == wanted.grid
    assert (patches.numpy() == wanted.patches).all()


def test_what_is_no_picture() -> None:
    shape = tiny_config(max_patches=9).model_dump()
    array = np.asarray(NOISE)
    assert patches_of(array, shape)[0].equal(patches_of(NOISE, shape)[0])
    with pytest.raises(ValueError, match=r"images: str is no picture: give PIL\.Image\.open"):
        patches_of("cat.png", shape)
    with pytest.raises(ValueError, match="images: pixels of 32 bits"):
        patches_of(Image.new("F", (4, 4)), shape)
