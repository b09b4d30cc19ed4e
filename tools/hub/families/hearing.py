"""wav2vec 2.0, HuBERT and Whisper's encoder: what becomes an audio encoder."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from tools.hub.families.pictures import PROCESSOR
from tools.hub.families.table import (
    Described,
    Entry,
    Family,
    both,
    flat,
    gelu,
    grouped,
    one_way,
    without_keys,
)

PREFIX: Final = "encoders.audio."
_BLOCK: Final = f"{PREFIX}blocks.{{}}."
_RATE: Final = 16_000
_HOP: Final = 160
_LONGEST_SECONDS: Final = 30.0
"""Of a sound, where the class knows no bound."""


def _whisper(described: Described, faults: list[str]) -> dict[str, Any]:
    rows = described.get("max_source_positions", 1500)
    seconds = rows * 2 * _HOP / _RATE
    processor = described.get(PROCESSOR, {})
    for key, usual in (("hop_length", _HOP), ("n_fft", 400), ("sampling_rate", _RATE)):
        _require(processor, key, usual, faults)
    mels = described.get("num_mel_bins", 80)
    _require(processor, "feature_size", mels, faults)
    _require(processor, "do_normalize", False, faults)
    return {
        "kind": "audio",
        "width": described["d_model"],
        "num_layers": described["encoder_layers"],
        "heads": described["encoder_attention_heads"],
        "feed_forward": described["encoder_ffn_dim"],
        "front": {"kind": "log_mel", "mels": mels},
        "max_seconds": seconds,
        "padded_seconds": seconds,
        "table_rows": rows,
        "norm": "pre",
        "activation": gelu(described, "activation_function", faults),
        "dropout": described.get("dropout", 0.0),
    }


def _wav2vec2(described: Described, faults: list[str]) -> dict[str, Any]:
    for key in ("add_adapter", "adapter_attn_dim", "conv_pos_batch_norm"):
        if described.get(key):
            faults.append(f"{key}: there is none here")
    processor = described.get(PROCESSOR, {})
    _require(processor, "sampling_rate", _RATE, faults)
    _require(processor, "feature_size", 1, faults)
    if gelu(described, "feat_extract_activation", faults) != "gelu":
        faults.append("feat_extract_activation: convolutions have the exact GELU")
    is_stable = bool(described.get("do_stable_layer_norm", False))
    norm = described.get("feat_extract_norm", "group")
    if norm not in ("group", "layer"):
        faults.append(f"feat_extract_norm {str(norm)[:40]!r}: it is group or layer")
    epsilon = described.get("layer_norm_eps", 1e-5)
    return {
        "kind": "audio",
        "width": described["hidden_size"],
        "num_layers": described["num_hidden_layers"],
        "heads": described["num_attention_heads"],
        "feed_forward": described["intermediate_size"],
        "front": {
            "kind": "waveform",
            "channels": list(described.get("conv_dim", [512] * 7)),
            "kernels": list(described.get("conv_kernel", [10, 3, 3, 3, 3, 2, 2])),
            "strides": list(described.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])),
            "norm": "first" if norm == "group" else "each",
            "biases": described.get("conv_bias", False),
            "projection_norm": described.get("feat_proj_layer_norm", True),
            "norm_epsilon": epsilon,
            "position_kernel": described.get("num_conv_pos_embeddings", 128),
            "position_groups": described.get("num_conv_pos_embedding_groups", 16),
            "normalized": processor.get("do_normalize", True),
        },
        "max_seconds": _LONGEST_SECONDS,
        "norm": "pre" if is_stable else "post",
        "norm_epsilon": epsilon,
        "embedding_norm": not is_stable,
        "final_norm": is_stable,
        "activation": gelu(described, "hidden_act", faults),
        "dropout": described.get("hidden_dropout", 0.0),
    }


def _require(processor: Mapping[str, Any], key: str, usual: Any, faults: list[str]) -> None:
    found = processor.get(key, usual)
    if found != usual:
        faults.append(f"{PROCESSOR}: {key} {str(found)[:40]}: it is {usual} here")


def _normed(lengths: Tensor, directions: Tensor) -> Tensor:
    """A weight behind its weight norm, over all but the last dim."""
    return torch.linalg.vector_norm(directions, dim=(0, 1), keepdim=True).reciprocal() * (
        directions * lengths
    )


def _convolution(ours: str, theirs: str, *, has_bias: bool) -> Iterator[Entry]:
    yield one_way(f"{ours}.weight", f"{theirs}.weight", made=flat)
    if has_bias:
        yield Entry(ours=f"{ours}.bias", theirs=(f"{theirs}.bias",))


def _whisper_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    for number in (0, 1):
        theirs = f"encoder.conv{number + 1}"
        yield from _convolution(f"{PREFIX}front.convolutions.{number}", theirs, has_bias=True)
    places = "encoder.embed_positions.weight"
    yield Entry(ours=f"{PREFIX}positions.weight", theirs=(places,))
    yield from both(f"{PREFIX}final_norm", "encoder.layer_norm")
    layer = "encoder.layers.{}."
    for ours, theirs in (
        ("attention_norm", "self_attn_layer_norm"),
        ("attention.out", "self_attn.out_proj"),
        ("feed_forward_norm", "final_layer_norm"),
        ("feed_forward.up", "fc1"),
        ("feed_forward.down", "fc2"),
    ):
        yield from both(f"{_BLOCK}{ours}", f"{layer}{theirs}")
    fused = grouped(groups=shape["heads"])
    own = [f"{layer}self_attn.{part}_proj" for part in "qkv"]
    weights = [f"{part}.weight" for part in own]
    yield one_way(f"{_BLOCK}attention.qkv.weight", *weights, made=fused)

    made = without_keys(groups=shape["heads"])
    bias = f"{_BLOCK}attention.qkv.bias"
    yield one_way(bias, f"{own[0]}.bias", f"{own[2]}.bias", made=made)


def _wav2vec2_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    front = shape["front"]
    for number in range(len(front["channels"])):
        ours, theirs = f"{PREFIX}front.", f"feature_extractor.conv_layers.{number}."
        convolution = f"{ours}convolutions.{number}"
        yield from _convolution(convolution, f"{theirs}conv", has_bias=front["biases"])
        if number == 0 or front["norm"] == "each":
            yield from both(f"{ours}norms.{number}", f"{theirs}layer_norm")
    if front["projection_norm"]:
        yield from both(f"{PREFIX}front.projection_norm", "feature_projection.layer_norm")
    yield from both(f"{PREFIX}front.projection", "feature_projection.projection")
    place = "encoder.pos_conv_embed.conv"
    parts = [f"{place}.{part}" for part in ("weight_g", "weight_v")]
    yield one_way(f"{PREFIX}positions.weight", *parts, made=_normed)
    yield Entry(ours=f"{PREFIX}positions.bias", theirs=(f"{place}.bias",))
    norm = "embedding_norm" if shape["embedding_norm"] else "final_norm"
    yield from both(f"{PREFIX}{norm}", "encoder.layer_norm")
    layer = "encoder.layers.{}."
    for ours, theirs in (
        ("attention_norm", "layer_norm"),
        ("attention.out", "attention.out_proj"),
        ("feed_forward_norm", "final_layer_norm"),
        ("feed_forward.up", "feed_forward.intermediate_dense"),
        ("feed_forward.down", "feed_forward.output_dense"),
    ):
        yield from both(f"{_BLOCK}{ours}", f"{layer}{theirs}")
    fused = grouped(groups=shape["heads"])
    for kind in ("weight", "bias"):
        own = [f"{layer}attention.{part}_proj.{kind}" for part in "qkv"]
        yield one_way(f"{_BLOCK}attention.qkv.{kind}", *own, made=fused)


_WHISPER_HEADS: Final = r"decoder\.|(proj_out|projector|classifier)\.|layer_weights$"
_WAV2VEC2_HEADS: Final = (
    r"masked_spec_embed$|layer_weights$|(quantizer|project_q|project_hid|lm_head|projector|"
    r"classifier|feature_extractor_head|tdnn|objective|label_embeddings_concat)\."
)
_SPEECH: Final = partial(
    Family,
    part="audio",
    shape=_wav2vec2,
    table=_wav2vec2_table,
    idle=re.compile(_WAV2VEC2_HEADS),
    renamed={
        # As torch's newer weight norm has them.
        "conv.parametrizations.weight.original0": "conv.weight_g",
        "conv.parametrizations.weight.original1": "conv.weight_v",
    },
)

WAV2VEC2: Final = _SPEECH(prefix="wav2vec2.")
HUBERT: Final = _SPEECH(prefix="hubert.")
WHISPER: Final = Family(
    part="audio",
    prefix="model.",
    shape=_whisper,
    table=_whisper_table,
    idle=re.compile(_WHISPER_HEADS),
)
