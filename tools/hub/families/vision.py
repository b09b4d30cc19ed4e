"""ViT, CLIP's and SigLIP's vision models, and BEiT: what becomes an image encoder."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from tools.hub.families.pictures import pictures
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

PREFIX: Final = "encoders.image."
_BLOCK: Final = f"{PREFIX}blocks.{{}}."


def _shape(described: Described, faults: list[str], *, epsilon: float) -> dict[str, Any]:
    """What the four have in common."""
    if described.get("num_channels", 3) != 3:
        faults.append("num_channels: pictures are red, green and blue")
    patch, image = described.get("patch_size", 16), described.get("image_size", 224)
    sides = list(image) if isinstance(image, list | tuple) else [image, image]
    if not isinstance(patch, int):
        faults.append(f"patch_size {patch}: patches are squares")
        patch = int(patch[0])
    return {
        "kind": "image",
        "width": described["hidden_size"],
        "num_layers": described["num_hidden_layers"],
        "heads": described["num_attention_heads"],
        "feed_forward": described["intermediate_size"],
        "patch_pixels": patch,
        "size": sides,
        "table": [side // patch for side in sides],
        "norm": "pre",
        "norm_epsilon": described.get("layer_norm_eps", epsilon),
        "dropout": described.get("hidden_dropout_prob", described.get("dropout", 0.0)),
        "activation": gelu(described, "hidden_act", faults, also={"quick_gelu": "quick_gelu"}),
        "class_token": "dropped",
    }


def _vit(described: Described, faults: list[str]) -> dict[str, Any]:
    shape = _shape(described, faults, epsilon=1e-12)
    return pictures(described, shape, faults, resample=2)


def _beit(described: Described, faults: list[str]) -> dict[str, Any]:
    shape = _shape(described, faults, epsilon=1e-12)
    relative = "none"
    if described.get("use_shared_relative_position_bias"):
        relative = "shared"
    if described.get("use_relative_position_bias"):
        relative = "each"
    rows, columns = shape["table"]
    if relative != "none" and rows != columns:
        faults.append("image_size: relative positions of its class are those of squares")
    scale = described.get("layer_scale_init_value", 0.1)
    shape |= {
        "positions": bool(described.get("use_absolute_position_embeddings")),
        "relative_positions": relative,
        "layer_scale": scale if scale > 0 else None,
        "final_norm": not described.get("use_mean_pooling", True),
    }
    return pictures(described, shape, faults, resample=3)


def _clip(described: Described, faults: list[str]) -> dict[str, Any]:
    vision = _vision_of(described)
    shape = _shape({"hidden_act": "quick_gelu", "patch_size": 32, **vision}, faults, epsilon=1e-5)
    # The class puts a norm behind the class token alone, for what it pools.
    shape |= {"embedding_norm": True, "final_norm": False}
    mean = [0.48145466, 0.4578275, 0.40821073]
    std = [0.26862954, 0.26130258, 0.27577711]
    return pictures(described, shape, faults, resample=3, mean=mean, std=std, cuts=True)


def _siglip(described: Described, faults: list[str]) -> dict[str, Any]:
    vision = _vision_of(described)
    shape = _shape({"hidden_act": "gelu_pytorch_tanh", **vision}, faults, epsilon=1e-6)
    shape["class_token"] = "none"
    return pictures(described, shape, faults, resample=3)


def _vision_of(described: Described) -> Described:
    """A whole CLIP or SigLIP has its vision model's configuration inside."""
    return described.get("vision_config", described)


def _row(values: Tensor) -> Tensor:
    return values.reshape(1, -1)


def _zeros(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0])


def _vit_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    projection = "embeddings.patch_embeddings.projection"
    yield one_way(f"{PREFIX}projection.weight", f"{projection}.weight", made=flat)
    yield Entry(ours=f"{PREFIX}projection.bias", theirs=(f"{projection}.bias",))
    yield one_way(f"{PREFIX}class_embedding.weight", "embeddings.cls_token", made=_row)
    if shape.get("positions", True):
        places = "embeddings.position_embeddings"
        yield one_way(f"{PREFIX}positions.weight", places, made=partial(torch.squeeze, dim=0))
    if shape.get("final_norm", True):
        yield from both(f"{PREFIX}final_norm", "layernorm")
    layer = "encoder.layer.{}."
    for ours, theirs in (
        ("attention_norm", "layernorm_before"),
        ("attention.out", "attention.output.dense"),
        ("feed_forward_norm", "layernorm_after"),
        ("feed_forward.up", "intermediate.dense"),
        ("feed_forward.down", "output.dense"),
    ):
        yield from both(f"{_BLOCK}{ours}", f"{layer}{theirs}")
    own = f"{layer}attention.attention."
    fused = grouped(groups=shape["heads"])
    parts = [f"{own}{part}" for part in ("query", "key", "value")]
    weights = [f"{part}.weight" for part in parts]
    yield one_way(f"{_BLOCK}attention.qkv.weight", *weights, made=fused)
    bias = f"{_BLOCK}attention.qkv.bias"
    if described["model_type"] == "beit":
        made = without_keys(groups=shape["heads"])
        yield one_way(bias, f"{parts[0]}.bias", f"{parts[2]}.bias", made=made)
        yield from _beit_entries(described, shape)
    elif described.get("qkv_bias", True):
        yield one_way(bias, *(f"{part}.bias" for part in parts), made=fused)
    else:
        yield one_way(bias, *weights, made=lambda *all_: _zeros(torch.cat(all_)))


def _beit_entries(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    layer = "encoder.layer.{}."
    if shape["layer_scale"] is not None:
        for ours, theirs in (("attention", "lambda_1"), ("feed_forward", "lambda_2")):
            yield Entry(ours=f"{_BLOCK}{ours}_scale.weight", theirs=(f"{layer}{theirs}",))
    table = "relative_position_bias.relative_position_bias_table"
    shared, own = f"encoder.{table}", f"{layer}attention.attention.{table}"
    ours = f"{PREFIX}patch_biases.{{}}.relative_bias.weight"
    if shape["relative_positions"] == "shared":
        yield Entry(ours=ours.format(0), theirs=(shared,))
    elif described.get("use_shared_relative_position_bias"):
        yield one_way(ours, own, shared, made=torch.add)
    elif shape["relative_positions"] == "each":
        yield Entry(ours=ours, theirs=(own,))


def _clip_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    projection = "embeddings.patch_embedding"
    yield one_way(f"{PREFIX}projection.weight", f"{projection}.weight", made=flat)
    if shape["class_token"] != "none":
        yield one_way(f"{PREFIX}projection.bias", f"{projection}.weight", made=_zeros)
        yield one_way(f"{PREFIX}class_embedding.weight", "embeddings.class_embedding", made=_row)
    else:
        yield Entry(ours=f"{PREFIX}projection.bias", theirs=(f"{projection}.bias",))
    places = "embeddings.position_embedding.weight"
    yield Entry(ours=f"{PREFIX}positions.weight", theirs=(places,))
    if shape.get("embedding_norm"):
        yield from both(f"{PREFIX}embedding_norm", "pre_layrnorm")
    if shape.get("final_norm", True):
        yield from both(f"{PREFIX}final_norm", "post_layernorm")
    layer = "encoder.layers.{}."
    for ours, theirs in (
        ("attention_norm", "layer_norm1"),
        ("attention.out", "self_attn.out_proj"),
        ("feed_forward_norm", "layer_norm2"),
        ("feed_forward.up", "mlp.fc1"),
        ("feed_forward.down", "mlp.fc2"),
    ):
        yield from both(f"{_BLOCK}{ours}", f"{layer}{theirs}")
    for kind in ("weight", "bias"):
        parts = (f"{layer}self_attn.{part}_proj.{kind}" for part in "qkv")
        made = grouped(groups=shape["heads"])
        yield one_way(f"{_BLOCK}attention.qkv.{kind}", *parts, made=made)


_HEADS: Final = (
    r"(pooler|classifier|decoder|lm_head|layernorm|decode_head|auxiliary_head|fpn\d)\.|"
    r"embeddings\.mask_token$|.*relative_position_index$"
)
_TOWERS: Final = (
    r"(text_model|text_projection|visual_projection|post_layernorm|head|classifier)\.|"
    r"logit_(scale|bias)$|embeddings\.position_ids$"
)


VIT: Final = Family(
    part="image", prefix="vit.", shape=_vit, table=_vit_table, idle=re.compile(_HEADS)
)
BEIT: Final = Family(
    part="image", prefix="beit.", shape=_beit, table=_vit_table, idle=re.compile(_HEADS)
)
CLIP: Final = Family(
    part="image", prefix="vision_model.", shape=_clip, table=_clip_table, idle=re.compile(_TOWERS)
)
SIGLIP: Final = Family(
    part="image", prefix="vision_model.", shape=_siglip, table=_clip_table, idle=re.compile(_TOWERS)
)
