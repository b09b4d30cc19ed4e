"""VideoMAE and TimeSformer: what becomes a video encoder."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from tools.hub.families.pictures import PROCESSOR, pictures
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

PREFIX: Final = "encoders.video."
_BLOCK: Final = f"{PREFIX}blocks.{{}}."
_TIME: Final = f"{PREFIX}times.{{}}."
_LAYER: Final = "encoder.layer.{}."


def _shape(described: Described, faults: list[str], *, epsilon: float) -> dict[str, Any]:
    """What the two have in common."""
    if described.get("num_channels", 3) != 3:
        faults.append("num_channels: videos are red, green and blue")
    patch, image = described.get("patch_size", 16), described.get("image_size", 224)
    sides = list(image) if isinstance(image, list | tuple) else [image, image]
    if not isinstance(patch, int):
        faults.append(f"patch_size {patch}: patches are squares")
        patch = int(patch[0])
    processor = described.get(PROCESSOR, {})
    if processor.get("do_pad"):
        faults.append(f"{PROCESSOR}: do_pad: frames have no rim here")
    return {
        "kind": "video",
        "width": described["hidden_size"],
        "num_layers": described["num_hidden_layers"],
        "heads": described["num_attention_heads"],
        "feed_forward": described["intermediate_size"],
        "patch_pixels": patch,
        "size": sides,
        "norm": "pre",
        "norm_epsilon": described.get("layer_norm_eps", epsilon),
        "dropout": described.get("hidden_dropout_prob", 0.0),
        "activation": gelu(described, "hidden_act", faults),
    }


def _read(described: Described, shape: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return pictures(described, shape, faults, resample=2, cuts=True)


def _videomae(described: Described, faults: list[str]) -> dict[str, Any]:
    shape = _shape(described, faults, epsilon=1e-12) | {
        "frames": described.get("num_frames", 16),
        "tube_frames": described.get("tubelet_size", 2),
        "final_norm": not described.get("use_mean_pooling", True),
    }
    return _read(described, shape, faults)


def _timesformer(described: Described, faults: list[str]) -> dict[str, Any]:
    kind = described.get("attention_type", "divided_space_time")
    if kind != "divided_space_time":
        faults.append(f"attention_type {str(kind)[:40]!r}: it is divided_space_time")
    shape = _shape(described, faults, epsilon=1e-6)
    frames, patch = described.get("num_frames", 8), shape["patch_pixels"]
    shape |= {
        "frames": frames,
        "tube_frames": 1,
        "attention": "divided",
        "positions": "learned",
        "table": [frames, *(side // patch for side in shape["size"])],
        "class_token": "dropped",
    }
    return _read(described, shape, faults)


def _embedding(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    projection = "embeddings.patch_embeddings.projection"
    yield one_way(f"{PREFIX}projection.weight", f"{projection}.weight", made=flat)
    yield Entry(ours=f"{PREFIX}projection.bias", theirs=(f"{projection}.bias",))
    if shape.get("final_norm", True):
        yield from both(f"{PREFIX}final_norm", "layernorm")


def _blocks() -> Iterator[Entry]:
    for ours, theirs in (
        ("attention_norm", "layernorm_before"),
        ("attention.out", "attention.output.dense"),
        ("feed_forward_norm", "layernorm_after"),
        ("feed_forward.up", "intermediate.dense"),
        ("feed_forward.down", "output.dense"),
    ):
        yield from both(f"{_BLOCK}{ours}", f"{_LAYER}{theirs}")


def _videomae_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    yield from _embedding(described, shape)
    yield from _blocks()
    own = f"{_LAYER}attention.attention."
    weights = [f"{own}{part}.weight" for part in ("query", "key", "value")]
    fused = grouped(groups=shape["heads"])
    yield one_way(f"{_BLOCK}attention.qkv.weight", *weights, made=fused)
    bias = f"{_BLOCK}attention.qkv.bias"
    if described.get("qkv_bias", True):
        made = without_keys(groups=shape["heads"])
        yield one_way(bias, f"{own}q_bias", f"{own}v_bias", made=made)
    else:
        yield one_way(bias, weights[0], made=_three_zeros)


def _timesformer_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    yield from _embedding(described, shape)
    yield from _blocks()
    places = "embeddings.position_embeddings"
    squeezed = partial(torch.squeeze, dim=0)
    yield one_way(f"{PREFIX}class_embedding.weight", "embeddings.cls_token", made=squeezed)
    yield one_way(f"{PREFIX}positions.weight", places, made=squeezed)
    when = "embeddings.time_embeddings"
    yield one_way(f"{PREFIX}time_positions.weight", when, made=squeezed)
    yield from both(f"{_TIME}norm", f"{_LAYER}temporal_layernorm")
    yield from both(f"{_TIME}attention.out", f"{_LAYER}temporal_attention.output.dense")
    yield from both(f"{_TIME}projection", f"{_LAYER}temporal_dense")
    made = partial(_regrouped, groups=shape["heads"])
    for ours, theirs in ((_BLOCK, "attention"), (_TIME, "temporal_attention")):
        qkv, own = f"{ours}attention.qkv", f"{_LAYER}{theirs}.attention.qkv"
        yield one_way(f"{qkv}.weight", f"{own}.weight", made=made)
        if described.get("qkv_bias", True):
            yield one_way(f"{qkv}.bias", f"{own}.bias", made=made)
        else:
            yield one_way(f"{qkv}.bias", f"{own}.weight", made=_zeros)


def _regrouped(fused: Tensor, *, groups: int) -> Tensor:
    """Queries, keys and values of all heads, one after the other, head by head."""
    query, key, value = fused.chunk(3)
    return grouped(groups=groups)(query, key, value)


def _zeros(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0])


def _three_zeros(weight: Tensor) -> Tensor:
    return weight.new_zeros(3 * weight.shape[0])


_HEADS: Final = re.compile(
    r"(classifier|fc_norm|decoder|encoder_to_decoder|layernorm)\.|mask_token$|position_embeddings$"
)


VIDEOMAE: Final = Family(
    part="video", prefix="videomae.", shape=_videomae, table=_videomae_table, idle=_HEADS
)
TIMESFORMER: Final = Family(
    part="video", prefix="timesformer.", shape=_timesformer, table=_timesformer_table, idle=_HEADS
)
