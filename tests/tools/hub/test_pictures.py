"""ViT, CLIP, SigLIP and BEiT become image encoders, and pictures are read for them alike."""

import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from model import torchvision_free

torchvision_free.install()

import transformers  # noqa: E402  # behind what lets it be imported

from model.encoders.image import ImageEncoder, ImageEncoderConfig  # noqa: E402
from model.layers import Layers  # noqa: E402
from model.semicausal import SemiCausal  # noqa: E402
from tests.model.encoders.test_image import packed  # noqa: E402
from tests.tools.hub.kinds import random_instance  # noqa: E402
from train.build import first_weights, of_part, refuse_other_architecture  # noqa: E402
from train.checkpoint.restore import load_weights  # noqa: E402
from train.config import RunConfig  # noqa: E402
from train.config_files import load  # noqa: E402
from train.data.spans.picture import read_picture  # noqa: E402
from train.errors import CheckpointError  # noqa: E402
from train.loading import load_config  # noqa: E402
from train.storage.place import Place  # noqa: E402

import_main: Any = importlib.import_module("tools.import").main

TINY_RUN = Path(__file__).parents[2] / "tiny_run.yaml"
WITHIN = 1e-5
_SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 24,
    "patch_size": 4,
}
_BEIT = _SIZES | {"drop_path_rate": 0.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", _SIZES),
    "vit, classifier, no biases": ("ViTForImageClassification", _SIZES | {"qkv_bias": False}),
    "vit, pixels": ("ViTForMaskedImageModeling", _SIZES | {"encoder_stride": 4}),
    "vit, wide": ("ViTModel", _SIZES | {"image_size": [16, 24], "hidden_act": "gelu_new"}),
    "clip": ("CLIPVisionModel", _SIZES),
    "clip, projected": ("CLIPVisionModelWithProjection", _SIZES | {"hidden_act": "gelu"}),
    "siglip": ("SiglipVisionModel", _SIZES),
    "siglip, more than whole patches": ("SiglipVisionModel", _SIZES | {"image_size": 26}),
    "beit": ("BeitModel", _BEIT),
    "beit, each": ("BeitModel", _BEIT | {"use_relative_position_bias": True}),
    "beit, shared": (
        "BeitForMaskedImageModeling",
        _BEIT | {"use_shared_relative_position_bias": True, "use_mask_token": True},
    ),
    "beit, both, absolute": (
        "BeitForImageClassification",
        _BEIT
        | {
            "use_relative_position_bias": True,
            "use_shared_relative_position_bias": True,
            "use_absolute_position_embeddings": True,
            "layer_scale_init_value": 0.0,
            "use_mean_pooling": False,
        },
    ),
}
"""Class and configuration."""


def picture(height: int, width: int, seed: int = 0) -> bytes:
    """A PNG of smooth noise."""
    values = np.random.default_rng(seed).integers(256, size=(height, width, 3))
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def imported(theirs: Any, place: Path, **processor: Any) -> ImageEncoderConfig:
    theirs.save_pretrained(place / "theirs")
    if processor:
        (place / "theirs" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert import_main([str(place / "theirs"), str(place / "ours")]) == 0
    part = load_config(place / "ours").model.encoders["image"].encoder
    assert isinstance(part, ImageEncoderConfig)
    return part


def loaded(config: ImageEncoderConfig, place: Path) -> ImageEncoder:
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none").eval()
    load_weights(place / "ours", encoder, prefix="encoders.image.")
    return encoder


def pixels(config: ImageEncoderConfig, data: bytes) -> torch.Tensor:
    """What `read_picture` makes, as transformers' models take it."""
    item, P = read_picture(data, config), config.patch_pixels
    parts = torch.from_numpy(item.patches).view(*item.grid, 3, P, P)
    whole = parts.permute(2, 0, 3, 1, 4).reshape(3, item.grid[0] * P, item.grid[1] * P)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    return (whole / 255 - mean) / std


@torch.no_grad()
def features(theirs: Any, values: torch.Tensor, *, between: bool) -> torch.Tensor:
    """Last hidden states of the vision model itself."""
    kind = theirs.config.model_type
    inner = getattr(theirs, kind, None) or getattr(theirs, "vision_model", theirs)
    options: dict[str, Any] = {}
    if kind != "beit":  # which always reads between
        options["interpolate_pos_encoding"] = between
    return inner(values[None], **options).last_hidden_state[0]


def difference(name: str, place: Path) -> float:
    """Largest of pictures of its size, of larger, smaller and oblong ones; the class row's too."""
    theirs = random_instance(*KINDS[name])
    config = imported(theirs, place)
    assert config.class_token == ("none" if "siglip" in name else "dropped")
    own, found = config.size, list[float]()
    sizes = [own] if "wide" in name else [own, [32, 32], [16, 16], [20, 36]]
    for size in sizes:
        changed: dict[str, Any] = {"size": size, "fit": "stretch"}
        if "siglip" not in name:
            changed["class_token"] = "kept"
        there = config.model_copy(update=changed)
        encoder = loaded(there, place)
        data = picture(50, 40)
        items = [read_picture(data, there), read_picture(picture(9, 70, 1), there)]
        with torch.no_grad():
            ours = encoder(packed(there, items))[: there.longest_span]
        expected = features(theirs, pixels(there, data), between=size != own)
        found.append(float((ours - expected).abs().max()))
    return max(found)


@pytest.mark.parametrize("name", KINDS)
def test_features_are_those_of_the_class(name: str, tmp_path: Path) -> None:
    assert difference(name, tmp_path) <= WITHIN


def test_features_follow_from_the_weights(tmp_path: Path) -> None:
    """What compares must be able to fail: one weight of one layer moved."""
    theirs = random_instance(*KINDS["beit, each"])
    config = imported(theirs, tmp_path)
    with torch.no_grad():
        theirs.encoder.layer[
            1
        ].attention.attention.relative_position_bias.relative_position_bias_table[17] += 0.1
    item = read_picture(picture(50, 40), config)
    ours = loaded(config, tmp_path)(packed(config, [item]))
    expected = features(theirs, pixels(config, picture(50, 40)), between=False)[1:]
    assert float((ours - expected).detach().abs().max()) > 10 * WITHIN


def test_a_whole_clip_gives_its_vision_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CLIP", "Siglip"):
        sizes = {key: _SIZES[key] for key in _SIZES if key not in ("image_size", "patch_size")}
        options = {"vision_config": _SIZES, "text_config": sizes | {"vocab_size": 61}}
        theirs = random_instance(f"{name}Model", options)
        config = imported(theirs, tmp_path / name)
        told = capsys.readouterr().out
        assert "of the image encoder are not, and were left out" in told
        item = read_picture(picture(50, 40), config)
        with torch.no_grad():
            ours = loaded(config, tmp_path / name)(packed(config, [item]))
        expected = features(theirs, pixels(config, picture(50, 40)), between=False)
        assert float((ours - expected[-len(ours) :]).abs().max()) <= WITHIN


PROCESSORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", "vit", {"size": {"height": 24, "width": 24}}),
    "siglip": ("SiglipImageProcessor", "siglip", {"size": {"height": 24, "width": 24}}),
    "clip": (
        "CLIPImageProcessor",
        "clip",
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    ),
    "clip, with a margin": (
        "CLIPImageProcessor",
        "clip",
        {"size": {"shortest_edge": 29}, "crop_size": {"height": 24, "width": 24}},
    ),
    "beit, with a margin": (
        "BeitImageProcessor",
        "beit",
        {"size": {"height": 28, "width": 30}, "crop_size": {"height": 24, "width": 24}},
    ),
    "imagenet's colours": (
        "ViTImageProcessor",
        "vit",
        {
            "size": {"height": 24, "width": 24},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
        },
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_are_read_as_the_processor_does(name: str, tmp_path: Path) -> None:
    class_name, kind, options = PROCESSORS[name]
    processor = getattr(transformers, class_name)(**options)
    described = json.loads(processor.to_json_string())
    config = imported(random_instance(*KINDS[kind]), tmp_path, **described)
    for height, width in ((24, 24), (50, 40), (37, 101), (9, 70), (300, 20), (640, 480)):
        data = picture(height, width)
        expected = processor(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values[0]
        ours = pixels(config, data)
        assert float((ours - expected).abs().max()) <= 1e-5, (height, width)


def test_a_run_reads_the_part(tmp_path: Path) -> None:
    """`model.yaml` names the checkpoint, how pictures are read, and the table's own grid."""
    imported(random_instance(*KINDS["clip"]), tmp_path)
    part = yaml.safe_load((tmp_path / "ours" / "model.yaml").read_text())
    encoder = part["model"]["encoders"]["image"]["encoder"]
    assert list(part["model"]) == ["encoders"]
    assert encoder["init_from"] == str(tmp_path / "ours")
    assert (encoder["size"], encoder["table"], encoder["fit"]) == ([24, 24], [6, 6], "crop")
    assert encoder["mean"][0] == pytest.approx(0.48145466)
    assert ImageEncoderConfig.model_validate(encoder).layers_in_training == 2


def test_a_run_begins_from_it(tmp_path: Path) -> None:
    """Beside the text encoder; what is fixed has the checkpoint's values, and so has the rest."""
    theirs = random_instance(*KINDS["beit, each"])
    imported(theirs, tmp_path)
    given = [str(TINY_RUN), str(tmp_path / "ours" / "model.yaml"), "data.corpus=none"]
    given += ["data.pack=fit", "spans.image={kind: image}", "run_directory=none"]
    config = load(RunConfig, given)
    (place, prefix), *others = first_weights(config)
    assert (place, prefix, others) == (Place.of(tmp_path / "ours"), "encoders.image.", [])
    refuse_other_architecture(place, of_part(config, prefix))
    model = SemiCausal(config.built_model)
    encoder = model.encoders["image"]
    load_weights(place, encoder, prefix=prefix)
    assert isinstance(encoder, ImageEncoder)
    layer = theirs.encoder.layer[2]
    values = dict(encoder.named_parameters())
    assert values["blocks.2.attention_scale.weight"].equal(layer.lambda_1)
    trained = {name for name, value in values.items() if value.requires_grad}
    numbers = {int(name.split(".")[1]) for name in trained if "." in name}
    assert numbers == {1, 2}
    assert not encoder.projection.weight.requires_grad


def test_a_run_may_change_how_pictures_are_read(tmp_path: Path) -> None:
    """Another size, native aspect, the class vector kept: the weights mean the same."""
    imported(random_instance(*KINDS["clip"]), tmp_path)
    place = Place.of(tmp_path / "ours")
    config = load_config(place).model.encoders["image"].encoder
    here = config.model_dump()
    key = "encoders.image.encoder"
    for change, fault in (
        ({"size": [32, 40]}, None),
        ({"size": None, "max_patches": 30, "fit": "stretch"}, None),
        ({"class_token": "kept", "dropout": 0.1, "trainable_layers": 1}, None),
        ({"class_token": "none"}, "class_token"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean"),
        ({"table": [5, 6]}, "table"),
        ({"activation": "gelu"}, "activation"),
    ):
        other = ImageEncoderConfig.model_validate(here | change)
        parts = {key: other.architecture(vocabulary=8)}
        if fault is None:
            refuse_other_architecture(place, parts)
            encoder = other.build(vocabulary=8, layers=Layers(), recompute="none")
            load_weights(place, encoder, prefix="encoders.image.")
        else:
            with pytest.raises(CheckpointError, match=rf"encoder\.{fault}"):
                refuse_other_architecture(place, parts)


@pytest.mark.parametrize(
    ("kind", "change", "processor", "message"),
    [
        ("vit", {"num_channels": 1}, {}, "num_channels: pictures are red, green and blue"),
        ("vit", {"patch_size": [4, 8]}, {}, "patch_size [4, 8]: patches are squares"),
        ("vit", {"hidden_act": "relu"}, {}, "hidden_act 'relu': the activation is one of gelu"),
        ("vit", {"num_hidden_layers": 4}, {}, "it lacks encoder.layer.3.attention"),
        ("vit", {"num_hidden_layers": 2}, {}, "it has left over encoder.layer.2.attention"),
        ("vit", {"image_size": 32}, {}, "positions.weight is [37, 24] and should be [65, 24]"),
        ("vit", {"image_size": 2}, {}, "table.0: Input should be greater than or equal to 1"),
        ("vit", {}, {"size": 3}, "size: [3, 3] holds no patch of 4 pixels"),
        ("vit", {}, {"resample": 1}, "preprocessor_config.json: resample 1: pixels are bilinear"),
        ("vit", {}, {"rescale_factor": 1.0}, "rescale_factor 1.0: pixels are between 0 and 1"),
        ("vit", {}, {"do_resize": False}, "do_rescale, do_resize: pictures get one size"),
        ("clip", {}, {"do_center_crop": False}, "without do_center_crop pictures would keep"),
        ("vit", {}, {"size": {"width": 3}}, "config.json lacks 'height'"),
        ("beit, each", {"image_size": [16, 24]}, {}, "relative positions of its class are those"),
    ],
)
def test_import_refuses(
    kind: str,
    change: dict[str, Any],
    processor: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "theirs"
    random_instance(*KINDS[kind]).save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(described))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert import_main([str(folder), str(tmp_path / "ours")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "ours").exists()
