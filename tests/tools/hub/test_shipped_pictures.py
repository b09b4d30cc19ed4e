"""The code of pictures that goes along with an export computes what ours does."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.model.encoders.test_image import KINDS, packed, pictures, tiny_config, tiny_encoder
from tools.hub.shipped.configuration_semicausal import SemicausalConfig
from tools.hub.shipped.image_semicausal import ImageEncoder
from tools.hub.shipped.modeling_semicausal import SemicausalForCausalLM
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


@pytest.fixture(scope="module")
def shown() -> tuple[SemicausalForCausalLM, dict[str, torch.Tensor]]:
    """A model, and four rows with a picture each: a fifth is in no row."""
    torch.manual_seed(0)
    decoder = {
        "vocabulary": 32, "width": 16, "num_layers": 2, "heads": 2, "feed_forward": 32,
        "max_tokens": 64, "norm": "pre", "tied_head": True,
    }  # fmt: skip
    part = {
        "encoder": tiny_config(max_patches=6).model_dump(),
        "connector": {"kind": "linear"},
    }
    shape = {"decoder": decoder, "encoders": {"image": part}}
    model = SemicausalForCausalLM(SemicausalConfig(shape)).eval()
    grids = torch.tensor([[2, 2], [1, 4], [4, 1], [2, 2], [1, 4]])
    numbers = torch.zeros(4, 9, dtype=torch.long)
    for row in range(4):
        numbers[row, row + 1 : row + 5] = row + 1
    rows = {
        "input_ids": torch.randint(3, 30, (4, 9)),
        "attention_mask": torch.ones(4, 9, dtype=torch.long),
        "pixel_values": torch.randint(0, 256, (5, 4, 48), dtype=torch.uint8),
        "spatial_shapes": grids,
        "pixel_slots": numbers,
    }
    return model, rows


IN_ROWS = ("input_ids", "attention_mask", "pixel_slots")
Shown = tuple[Any, dict[str, torch.Tensor]]


@torch.no_grad()
def test_rows_find_their_pictures_whichever_others_there_are(shown: Shown) -> None:
    model, rows = shown
    whole = model(**rows).logits
    for chosen in ([0, 1], [2], [3, 0], [1, 1, 1]):
        some = {name: v[chosen] if name in IN_ROWS else v for name, v in rows.items()}
        torch.testing.assert_close(model(**some).logits, whole[chosen])
    other = rows | {"pixel_values": rows["pixel_values"].flip(0)}
    assert (model(**other).logits - whole).abs().max() > 1e-3


@torch.no_grad()
def test_beams_are_those_of_each_row_alone(shown: Shown) -> None:
    model, rows = shown
    options: dict[str, Any] = {
        "do_sample": False, "max_new_tokens": 5, "num_beams": 3, "eos_token_id": None,
        "pad_token_id": 0,
    }  # fmt: skip
    together = model.generate(**rows, **options)
    for row in range(4):
        alone = {name: v[[row]] if name in IN_ROWS else v for name, v in rows.items()}
        assert model.generate(**alone, **options)[0].equal(together[row])


@torch.no_grad()
def test_other_ways_to_give_a_prompt(shown: Shown) -> None:
    model, rows = shown
    options: dict[str, Any] = {
        "do_sample": False, "max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    wanted = model.generate(**rows, **options)[:, 9:]
    embedded = model.embed(**{k: v for k, v in rows.items() if k != "attention_mask"})
    given = {"inputs_embeds": embedded, "attention_mask": rows["attention_mask"]}
    assert model.generate(**given, **options).equal(wanted)
    with pytest.raises(ValueError, match="leave out prefill_chunk_size"):
        model.generate(**rows, **options, prefill_chunk_size=4)
    with pytest.raises(ValueError, match=r"names picture 4, and pixel_values has 2"):
        model(**rows | {name: rows[name][:2] for name in ("pixel_values", "spatial_shapes")})
