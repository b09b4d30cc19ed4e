"""A plain decoder as the class of transformers that computes the same, without code of ours.

What `families` reads, read backwards: Llama, Qwen2 and GPT-2.
"""

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from model.decoder import DecoderConfig
from model.rope import Llama3Scaling, RopeScaling
from model.semicausal import ModelConfig
from tools.hub.families.gpt2 import GPT2
from tools.hub.families.llama import LLAMA
from tools.hub.families.table import Described, Family
from train.errors import CheckpointError

Native = tuple[Family, dict[str, Any]]

_ALIKE: Final = {"norm": "pre", "embedding_scale": 1.0}


def described_as(model: ModelConfig, *, place: str) -> Native:
    """The class that computes what a model does, and its config.json.

    Args:
        model: whole.
        place: what to call its checkpoint in messages.

    Raises:
        CheckpointError: no class that is known does; every reason is named.
    """
    decoder = model.decoder
    wanted: dict[str, Any] = dict(_ALIKE)
    is_llama = decoder.positions == "rope"
    wanted |= (
        {"norm_layer": "rms_norm", "activation": "swiglu"}
        if is_llama
        else {"positions": "learned", "norm_layer": "layer_norm", "biases": "all"}
        | {"kv_heads": None, "head_width": None}
    )
    faults = [
        f"model.decoder.{key} is {getattr(decoder, key)}, and {value} there"
        for key, value in wanted.items()
        if getattr(decoder, key) != value
    ]
    if not is_llama and decoder.activation == "swiglu":
        faults.append("model.decoder.activation is swiglu, and gelu or gelu_tanh there")
    if model.encoders:
        faults.append(f"it has an encoder for {', '.join(model.encoders)}")
    if faults:
        raise CheckpointError(
            f"{place} computes what no class of transformers does (the nearest is "
            f"{'LlamaForCausalLM' if is_llama else 'GPT2LMHeadModel'}): {'; '.join(faults)}; "
            "export it without --native"
        )
    return (LLAMA, _llama(decoder)) if is_llama else (GPT2, _gpt2(decoder))


def taken_apart(
    native: Native, model: ModelConfig, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our tensors as those of the class, by the names that it saves."""
    family, described = native
    shape = family.shape(described, [])
    found: dict[str, Tensor] = {}
    for entry in family.table(described, shape):
        layers = range(model.decoder.num_layers) if "{}" in entry.ours else (0,)
        for layer in layers:
            one = entry.of_layer(layer)
            assert one.taken_apart is not None, "decoders have a way back"
            for name, value in zip(one.theirs, one.taken_apart(values[one.ours]), strict=True):
                whole = name if name == "lm_head.weight" else f"{family.prefix}{name}"
                found[whole] = value.contiguous()
    return found


def _llama(decoder: DecoderConfig) -> dict[str, Any]:
    is_qwen = decoder.biases == "qkv"
    described: dict[str, Any] = {
        "model_type": "qwen2" if is_qwen else "llama",
        "architectures": ["Qwen2ForCausalLM" if is_qwen else "LlamaForCausalLM"],
        "vocab_size": decoder.vocabulary,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.feed_forward,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.channels,
        "max_position_embeddings": decoder.max_tokens,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_epsilon,
        "rope_theta": decoder.rope_theta,
        "rope_scaling": _scaling(decoder.rope_scaling),
        "tie_word_embeddings": decoder.tied_head,
    }
    if not is_qwen:
        described |= dict.fromkeys(("attention_bias", "mlp_bias"), decoder.biases == "all")
    return described


def _scaling(scaling: RopeScaling | None) -> Described | None:
    if scaling is None:
        return None
    described: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        described |= {
            "low_freq_factor": scaling.low_factor,
            "high_freq_factor": scaling.high_factor,
            "original_max_position_embeddings": scaling.original_tokens,
        }
    return described


def _gpt2(decoder: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": decoder.vocabulary,
        "n_embd": decoder.width,
        "n_inner": decoder.feed_forward,
        "n_layer": decoder.num_layers,
        "n_head": decoder.heads,
        "n_positions": decoder.max_tokens,
        "activation_function": "gelu" if decoder.activation == "gelu" else "gelu_new",
        "layer_norm_epsilon": decoder.norm_epsilon,
        "tie_word_embeddings": decoder.tied_head,
        "attn_pdrop": decoder.dropout,
        "resid_pdrop": decoder.dropout,
        "embd_pdrop": 0.0,
    }
