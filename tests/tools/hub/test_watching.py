"""VideoMAE and TimeSformer become video encoders, and see as they do."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from model import torchvision_free

torchvision_free.install()

import transformers  # noqa: E402  # behind what lets it be imported

from model.encoders.video import VideoEncoder, VideoEncoderConfig  # noqa: E402
from model.layers import Layers  # noqa: E402
from tests import clips  # noqa: E402
from tests.model.encoders.test_video import packed  # noqa: E402
from tests.tools.hub.kinds import random_instance  # noqa: E402
from train.checkpoint.restore import load_weights  # noqa: E402
from train.data.spans.tubes import Clip, read_clip  # noqa: E402
from train.loading import load_config  # noqa: E402

import_main: Any = importlib.import_module("tools.import").main

WITHIN = 1e-5
_SIZES: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3,
    "image_size": 8, "patch_size": 4, "num_frames": 4,
}  # fmt: skip
_DECODER: dict[str, Any] = {
    "decoder_hidden_size": 12, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 8,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "videomae": ("VideoMAEModel", _SIZES | {"use_mean_pooling": False}),
    "videomae, pooled": ("VideoMAEModel", _SIZES | {"hidden_act": "gelu_new"}),
    "videomae, pixels": ("VideoMAEForPreTraining", _SIZES | _DECODER),
    "videomae, classes": ("VideoMAEForVideoClassification", _SIZES | {"qkv_bias": False}),
    "timesformer": ("TimesformerModel", _SIZES),
    "timesformer, classes": ("TimesformerForVideoClassification", _SIZES | {"qkv_bias": False}),
}
"""Class and configuration."""


def imported(theirs: Any, place: Path, **processor: Any) -> VideoEncoderConfig:
    theirs.save_pretrained(place / "theirs")
    if processor:
        (place / "theirs" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert import_main([str(place / "theirs"), str(place / "ours")]) == 0
    part = load_config(place / "ours").model.encoders["video"].encoder
    assert isinstance(part, VideoEncoderConfig)
    return part


def loaded(config: VideoEncoderConfig, place: Path) -> VideoEncoder:
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none").eval()
    load_weights(place / "ours", encoder, prefix="encoders.video.")
    return encoder


def pixels(config: VideoEncoderConfig, item: Clip) -> torch.Tensor:
    """What `read_clip` makes, as transformers' models take it: [frames, 3, height, width]."""
    (rows, columns), P = item.grid, config.patch_pixels
    tubes = torch.from_numpy(item.patches).view(-1, rows, columns, 3, config.tube_frames, P, P)
    whole = tubes.permute(0, 4, 3, 1, 5, 2, 6).reshape(config.frames, 3, rows * P, columns * P)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    return (whole / 255 - mean) / std


@torch.no_grad()
def features(theirs: Any, config: VideoEncoderConfig, item: Clip) -> torch.Tensor:
    """Last hidden states of the class in our order: the class row, then time after time."""
    kind = theirs.config.model_type
    inner = getattr(theirs, kind, theirs)
    if kind == "videomae" and config.frames != theirs.config.num_frames:
        # Its positions are drawn for one number of frames when it is built.
        other = type(inner.config).from_dict(inner.config.to_dict() | {"num_frames": config.frames})
        longer = type(inner)(other).eval()
        longer.load_state_dict(inner.state_dict())
        inner = longer
    if kind == "timesformer":
        inner.config.num_frames = config.frames  # its layers ask for it at every call
    found = inner(pixels(config, item)[None]).last_hidden_state[0]
    if kind == "videomae":
        return found
    tubes = found[1:].view(-1, config.times, found.shape[1])
    return torch.cat([found[:1], tubes.transpose(0, 1).flatten(0, 1)])


def difference(name: str, place: Path) -> float:
    """Largest, from files on, of as many frames as the class was trained on, more and fewer."""
    theirs = random_instance(*KINDS[name])
    if "timesformer" in name:  # which begins with zeros
        inner = getattr(theirs, "timesformer", theirs)
        torch.nn.init.normal_(inner.embeddings.time_embeddings, std=0.5)
    config = imported(theirs, place)
    differences: list[float] = []
    files = [
        clips.saved(clips.noise(count, 24, 40, seed=count), format=format)
        for count, format in ((9, "mp4"), (3, "webm"), (1, "mp4"))
    ]
    for frames in (4, 8, 2):
        changed: dict[str, Any] = {"frames": frames}
        if "timesformer" in name:
            changed["class_token"] = "kept"
        there = config.model_copy(update=changed)
        items = [read_clip(file, there) for file in files]
        with torch.no_grad():
            found = loaded(there, place)(packed(there, items))
        for ours, item in zip(found.split(there.longest_span), items, strict=True):
            expected = features(theirs, there, item)
            differences.append(float((ours - expected).abs().max()))
    return max(differences)


@pytest.mark.parametrize("name", KINDS)
def test_features_are_those_of_the_class(name: str, tmp_path: Path) -> None:
    assert difference(name, tmp_path) <= WITHIN


def test_features_follow_from_the_weights(tmp_path: Path) -> None:
    """What compares must be able to fail: one weight behind attention over time moved."""
    theirs = random_instance(*KINDS["timesformer"])
    config = imported(theirs, tmp_path).model_copy(update={"class_token": "kept"})
    item = read_clip(clips.saved(clips.noise(5, 16, 16)), config)
    with torch.no_grad():
        theirs.encoder.layer[1].temporal_dense.weight[0, 3] += 0.1
        found = loaded(config, tmp_path)(packed(config, [item]))
    assert float((found - features(theirs, config, item)).abs().max()) > 10 * WITHIN


def test_frames_are_read_as_the_processor_does(tmp_path: Path) -> None:
    """Fitted and cut; of a file whose frames come back as they were written."""
    processor = transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8},
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    described = json.loads(processor.to_json_string())
    config = imported(random_instance(*KINDS["videomae"]), tmp_path, **described)
    assert (config.size, config.resized, config.fit) == ([8, 8], [10, 10], "crop")
    for height, width in ((24, 40), (40, 16), (8, 8)):
        frames = clips.noise(4, height, width)
        item = read_clip(clips.exact(frames), config)
        expected = processor(list(frames), return_tensors="pt").pixel_values[0]
        assert float((pixels(config, item) - expected).abs().max()) <= WITHIN


def test_a_run_reads_the_part(tmp_path: Path) -> None:
    """`model.yaml` names the checkpoint, and that two layers of it train."""
    imported(random_instance(*KINDS["timesformer"]), tmp_path)
    part = yaml.safe_load((tmp_path / "ours" / "model.yaml").read_text())
    assert list(part["model"]) == ["encoders"]
    shape = part["model"]["encoders"]["video"]["encoder"]
    assert shape["init_from"] == str(tmp_path / "ours")
    assert (shape["frames"], shape["tube_frames"], shape["table"]) == (4, 1, [4, 2, 2])
    config = VideoEncoderConfig.model_validate(shape | {"frames": 6})
    assert config.layers_in_training == 2
    loaded(config, tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "processor", "message"),
    [
        ("videomae", {"num_channels": 1}, {}, "num_channels: videos are red, green and blue"),
        ("videomae", {"hidden_act": "relu"}, {}, "hidden_act 'relu': the activation is one of"),
        ("videomae", {"num_hidden_layers": 4}, {}, "it lacks encoder.layer.3.attention"),
        ("videomae", {"num_hidden_layers": 2}, {}, "it has left over encoder.layer.2."),
        ("videomae", {"num_frames": 5}, {}, "5 are not a multiple of tube_frames, which is 2"),
        ("videomae", {"tubelet_size": 1}, {}, "projection.weight is [24, 96] and should be [24, 4"),
        ("videomae", {"num_attention_heads": 5}, {}, "5 heads do not divide width 24"),
        ("videomae", {}, {"resample": 1}, "resample 1: pixels are bilinear (2) or bicubic (3)"),
        ("timesformer", {"attention_type": "space_only"}, {}, "'space_only': it is divided_space"),
        ("timesformer", {"num_frames": 3}, {}, "time_positions.weight is [4, 24] and should be"),
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


def test_order_of_frames_is_theirs_too(tmp_path: Path) -> None:
    """A file played backwards gives other vectors, as the class says."""
    theirs = random_instance(*KINDS["videomae"])
    config = imported(theirs, tmp_path)
    encoder, frames = loaded(config, tmp_path), clips.noise(4, 8, 8)
    there, back = (
        read_clip(clips.exact(some), config) for some in (frames, list(reversed(frames)))
    )
    assert not np.array_equal(there.patches, back.patches)
    with torch.no_grad():
        found = encoder(packed(config, [back]))
    assert float((found - features(theirs, config, back)).abs().max()) <= WITHIN
    assert float((found - features(theirs, config, there)).abs().max()) > 10 * WITHIN
