"""Llama, and what is built as it: Qwen2 and Mistral."""

import re
from collections.abc import Iterator
from typing import Any, Final

from tools.hub.families.table import Described, Entry, Family, apart, grouped


def _llama(described: Described, faults: list[str]) -> dict[str, Any]:
    heads, width = described["num_attention_heads"], described["hidden_size"]
    is_qwen = described["model_type"] == "qwen2"
    # transformers 5 writes the first, 4 the second, and both obey the second where both are there.
    rope = {
        **(described.get("rope_parameters") or {}),
        **(described.get("rope_scaling") or {}),
    }
    if nested := sorted(str(key)[:40] for key, value in rope.items() if isinstance(value, dict)):
        faults.append(f"rope_parameters {', '.join(nested)}: all layers turn positions alike")
    theta = rope.get("rope_theta", described.get("rope_theta", 10_000.0))
    scaling = _scaling(rope, faults)
    if described.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) != 1.0:
        faults.append("partial_rotary_factor: rope turns all channels of a head")
    if described.get("hidden_act", "silu") != "silu":
        faults.append(f"hidden_act {str(described['hidden_act'])[:40]!r}: the gate is SiLU")
    slides = None
    if described["model_type"] == "mistral":  # which slides where its configuration says nothing
        slides = described.get("sliding_window", 4096)
    is_short = slides is not None and slides < described["max_position_embeddings"]
    if described.get("use_sliding_window") or is_short:
        faults.append("sliding_window: slots see all before them")
    biases = {bool(described.get(key)) for key in ("attention_bias", "mlp_bias")}
    if len(biases) > 1:
        faults.append("attention_bias, mlp_bias: blocks have both or neither")
    groups = described.get("num_key_value_heads") or heads
    return {
        "vocabulary": described["vocab_size"],
        "width": width,
        "num_layers": described["num_hidden_layers"],
        "heads": heads,
        "feed_forward": described["intermediate_size"],
        "max_tokens": described["max_position_embeddings"],
        "norm": "pre",
        "tied_head": bool(described.get("tie_word_embeddings", False)),
        "positions": "rope",
        "rope_theta": float(theta),
        "rope_scaling": scaling,
        "norm_layer": "rms_norm",
        "norm_epsilon": described.get("rms_norm_eps", 1e-6),
        "activation": "swiglu",
        "biases": "qkv" if is_qwen else "all" if True in biases else "none",
        "kv_heads": None if groups == heads else groups,
        "head_width": described.get("head_dim"),
        "embedding_scale": 1.0,
    }


def _scaling(rope: Described, faults: list[str]) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    match kind:
        case "default":
            return None
        case "linear":
            return {"kind": kind, "factor": float(rope["factor"])}
        case "llama3":
            return {
                "kind": kind,
                "factor": float(rope["factor"]),
                "low_factor": float(rope["low_freq_factor"]),
                "high_factor": float(rope["high_freq_factor"]),
                "original_tokens": rope["original_max_position_embeddings"],
            }
        case _:
            faults.append(
                f"rope_scaling {str(kind)[:40]!r}: of ropes, plain, linear and llama3 are known, "
                "and with another states would differ at every length"
            )
            return None


def _llama_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    groups = shape["kv_heads"] or shape["heads"]
    yield Entry(ours="decoder.embedding.weight", theirs=("embed_tokens.weight",))
    ours, theirs = "decoder.blocks.{}.", "layers.{}."
    has_bias = {"all": ("qkv", "rest"), "qkv": ("qkv",), "none": ()}[shape["biases"]]
    for kind in ("weight", "bias"):
        if kind == "weight" or "qkv" in has_bias:
            yield Entry(
                ours=f"{ours}attention.qkv.{kind}",
                theirs=tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv"),
                made=grouped(groups=groups),
                taken_apart=apart(groups=groups, shared=shape["heads"] // groups),
            )
        if kind == "weight" or "rest" in has_bias:
            yield Entry(
                ours=f"{ours}attention.out.{kind}", theirs=(f"{theirs}self_attn.o_proj.{kind}",)
            )
            for part in ("gate", "up", "down"):
                yield Entry(
                    ours=f"{ours}feed_forward.{part}.{kind}",
                    theirs=(f"{theirs}mlp.{part}_proj.{kind}",),
                )
    yield Entry(ours=f"{ours}attention_norm.weight", theirs=(f"{theirs}input_layernorm.weight",))
    yield Entry(
        ours=f"{ours}feed_forward_norm.weight",
        theirs=(f"{theirs}post_attention_layernorm.weight",),
    )
    yield Entry(ours="decoder.final_norm.weight", theirs=("norm.weight",))
    if not shape["tied_head"]:
        yield Entry(ours="decoder.head.weight", theirs=("lm_head.weight",))


LLAMA: Final = Family(
    part="decoder",
    prefix="model.",
    shape=_llama,
    table=_llama_table,
    idle=re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq$"),
)
