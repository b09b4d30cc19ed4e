"""wav2vec 2.0, HuBERT and Whisper's encoder become audio encoders, and hear as they do."""

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

from model.encoders.audio import AudioEncoder, AudioEncoderConfig  # noqa: E402
from model.layers import Layers  # noqa: E402
from tests.sounds import noise, saved  # noqa: E402
from tests.tools.hub.kinds import random_instance  # noqa: E402
from train.checkpoint.restore import load_weights  # noqa: E402
from train.data.spans.hearing import Sound, pack_sounds, read_sound  # noqa: E402
from train.data.spans.places import FlatSpans  # noqa: E402
from train.data.spans.protocol import SpanCapacity  # noqa: E402
from train.loading import load_config  # noqa: E402

import_main: Any = importlib.import_module("tools.import").main

WITHIN = 1e-5
_SIZES: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3,
    "conv_dim": [24] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}  # fmt: skip
_LARGE = _SIZES | {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
_WHISPER: dict[str, Any] = {
    "d_model": 24, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 40,
    "decoder_layers": 1, "decoder_attention_heads": 3, "decoder_ffn_dim": 40, "vocab_size": 61,
    "max_source_positions": 50, "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 3,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2, base": ("Wav2Vec2Model", _SIZES),
    "wav2vec2, large": ("Wav2Vec2Model", _LARGE),
    "wav2vec2, letters": ("Wav2Vec2ForCTC", _SIZES | {"num_conv_pos_embeddings": 15}),
    "wav2vec2, contrast": ("Wav2Vec2ForPreTraining", _LARGE | {"conv_bias": False}),
    "hubert, base": ("HubertModel", _SIZES),
    "hubert, large": ("HubertModel", _LARGE | {"hidden_act": "gelu_new"}),
    "hubert, no norm": ("HubertForCTC", _SIZES | {"feat_proj_layer_norm": False}),
    "whisper": ("WhisperModel", _WHISPER),
    "whisper, text": ("WhisperForConditionalGeneration", _WHISPER | {"num_mel_bins": 11}),
    "whisper, classes": ("WhisperForAudioClassification", _WHISPER),
}
"""Class and configuration."""


def imported(theirs: Any, place: Path, **processor: Any) -> AudioEncoderConfig:
    theirs.save_pretrained(place / "theirs")
    if processor:
        (place / "theirs" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert import_main([str(place / "theirs"), str(place / "ours")]) == 0
    part = load_config(place / "ours").model.encoders["audio"].encoder
    assert isinstance(part, AudioEncoderConfig)
    return part


def loaded(config: AudioEncoderConfig, place: Path) -> AudioEncoder:
    encoder = config.build(vocabulary=8, layers=Layers(), recompute="none").eval()
    load_weights(place / "ours", encoder, prefix="encoders.audio.")
    return encoder


@torch.no_grad()
def ours(encoder: AudioEncoder, items: list[Sound]) -> list[torch.Tensor]:
    """Vectors of each, all packed together."""
    config = encoder.config
    lengths = np.array([config.front.num_rows(item.samples) for item in items])
    owners, starts = np.zeros_like(lengths), lengths.cumsum() - lengths
    spans = pack_sounds(
        items,
        FlatSpans(owners, starts, lengths),
        encoder=config,
        capacity=SpanCapacity(tokens=200, spans=8, longest_tokens=config.longest_span),
        sequences=1,
        sequence_tokens=400,
    )
    return list(encoder(spans).split(lengths.tolist()))


@torch.no_grad()
def features(theirs: Any, samples: Any) -> torch.Tensor:
    """Last hidden states of the class, read by its own processor."""
    kind = theirs.config.model_type
    if kind == "whisper":
        inner = getattr(theirs, "model", theirs)
        seconds = theirs.config.max_source_positions // 50
        extractor = transformers.WhisperFeatureExtractor(
            feature_size=theirs.config.num_mel_bins, chunk_length=seconds
        )
        values = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
        return inner.encoder(values).last_hidden_state[0]
    inner = getattr(theirs, kind, theirs)
    extractor = transformers.Wav2Vec2FeatureExtractor()
    values = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values
    return inner(values).last_hidden_state[0]


COUNTS = (16_000, 5431, 700, 9999)


def difference(name: str, place: Path) -> float:
    """Largest of sounds of several lengths, from their files on, all of them packed."""
    theirs = random_instance(*KINDS[name])
    config = imported(theirs, place)
    encoder = loaded(config, place)
    waves = [noise(count)[:, 0].astype(np.float32) for count in COUNTS]
    files = [saved(wave, 16_000, subtype="FLOAT") for wave in waves]
    found = ours(encoder, [read_sound(file, config) for file in files])
    differences: list[float] = []
    for wave, vectors in zip(waves, found, strict=True):
        expected = features(theirs, wave)
        if "whisper" not in name:
            assert len(vectors) == len(expected)
        differences.append(float((vectors - expected[: len(vectors)]).abs().max()))
    return max(differences)


@pytest.mark.parametrize("name", KINDS)
def test_features_are_those_of_the_class(name: str, tmp_path: Path) -> None:
    assert difference(name, tmp_path) <= WITHIN


def test_features_follow_from_the_weights(tmp_path: Path) -> None:
    """What compares must be able to fail: one weight of the position convolution moved."""
    theirs = random_instance(*KINDS["wav2vec2, base"])
    config = imported(theirs, tmp_path)
    wave = noise(4000)[:, 0].astype(np.float32)
    item = read_sound(saved(wave, 16_000, subtype="FLOAT"), config)
    with torch.no_grad():
        theirs.encoder.pos_conv_embed.conv.parametrizations.weight.original0[0, 0, 3] += 0.1
    (vectors,) = ours(loaded(config, tmp_path), [item])
    assert float((vectors - features(theirs, wave)).abs().max()) > 10 * WITHIN


def test_names_of_older_files_are_known(tmp_path: Path) -> None:
    """Hubs hold files of both kinds: what torch's weight norm was called before."""
    from safetensors.torch import load_file, save_file

    theirs = random_instance(*KINDS["hubert, base"])
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    names = {"parametrizations.weight.original0": "weight_g"}
    names["parametrizations.weight.original1"] = "weight_v"
    changed = 0
    for old, new in names.items():
        for name in list(tensors):
            here, there = (old, new) if old in name else (new, old)
            if here in name:
                tensors[name.replace(here, there)] = tensors.pop(name)
                changed += 1
    assert changed == 2
    save_file(tensors, file, metadata={"format": "pt"})
    assert import_main([str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0


def test_a_run_reads_the_part(tmp_path: Path) -> None:
    """`model.yaml` names the checkpoint, and that two layers of it train."""
    imported(random_instance(*KINDS["whisper"]), tmp_path)
    part = yaml.safe_load((tmp_path / "ours" / "model.yaml").read_text())
    assert list(part["model"]) == ["encoders"]
    shape = part["model"]["encoders"]["audio"]["encoder"]
    assert shape["init_from"] == str(tmp_path / "ours")
    assert (shape["max_seconds"], shape["padded_seconds"], shape["table_rows"]) == (1.0, 1.0, 50)
    config = AudioEncoderConfig.model_validate(shape | {"max_seconds": 0.5})
    assert config.layers_in_training == 2
    loaded(config, tmp_path)


def test_samples_may_be_as_they_are(tmp_path: Path) -> None:
    config = imported(random_instance(*KINDS["wav2vec2, base"]), tmp_path, do_normalize=False)
    assert config.front.kind == "waveform"
    assert not config.front.normalized


@pytest.mark.parametrize(
    ("kind", "change", "processor", "message"),
    [
        ("wav2vec2, base", {"add_adapter": True}, {}, "add_adapter: there is none here"),
        ("hubert, base", {"conv_pos_batch_norm": True}, {}, "conv_pos_batch_norm: there is none"),
        (
            "wav2vec2, base",
            {"feat_extract_activation": "relu"},
            {},
            "feat_extract_activation 'relu'",
        ),
        ("wav2vec2, base", {"feat_extract_activation": "gelu_new"}, {}, "have the exact GELU"),
        ("wav2vec2, base", {"feat_extract_norm": "batch"}, {}, "'batch': it is group or layer"),
        ("wav2vec2, base", {"num_hidden_layers": 4}, {}, "it lacks encoder.layers.3.attention"),
        ("wav2vec2, base", {"num_hidden_layers": 2}, {}, "it has left over encoder.layers.2."),
        ("wav2vec2, base", {"conv_stride": [5, 2]}, {}, "7 channels, 7 kernels and 2 strides"),
        (
            "wav2vec2, base",
            {"num_conv_pos_embedding_groups": 5},
            {},
            "5 groups do not divide width",
        ),
        ("wav2vec2, base", {}, {"sampling_rate": 8000}, "sampling_rate 8000: it is 16000 here"),
        (
            "whisper",
            {"num_mel_bins": 9},
            {},
            "front.convolutions.0.weight is [24, 24] and should be",
        ),
        ("whisper", {}, {"feature_size": 80}, "feature_size 80: it is 8 here"),
        ("whisper", {}, {"hop_length": 80}, "hop_length 80: it is 160 here"),
        ("whisper", {"activation_function": "relu"}, {}, "activation_function 'relu': the activ"),
        ("whisper", {"encoder_attention_heads": 5}, {}, "5 heads do not divide width 24"),
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
