"""Classes of transformers whose weights become a decoder or a text encoder of ours.

Each says what its configuration means here, and where each of our tensors comes from. What a class
can say that we do not compute is refused with its reason, never passed over.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from model.decoder import DecoderConfig
from model.encoders.text import TextEncoderConfig
from train.errors import CheckpointError
from train.storage.record import fault_of

Part = Literal["decoder", "text"]
Described = Mapping[str, Any]
"""A config.json of transformers."""

_GELUS: Final = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one of our tensors comes from.

    Attributes:
        ours: its name, `{}` being the layer.
        theirs: of which tensors it is made.
        made: makes it of them.
    """

    ours: str
    theirs: tuple[str, ...]
    made: Callable[..., Tensor] = lambda value: value

    def of_layer(self, layer: int) -> "Entry":
        """The same for one layer."""
        return Entry(
            ours=self.ours.replace("{}", str(layer)),
            theirs=tuple(name.replace("{}", str(layer)) for name in self.theirs),
            made=self.made,
        )


@dataclass(frozen=True, kw_only=True)
class Family:
    """A class of models.

    Attributes:
        part: what it becomes.
        prefix: what names begin with where a model with a head was saved.
        shape: the configuration of our decoder or text encoder, and faults of what cannot be one.
        table: our tensors and theirs.
        idle: matches names that nothing of ours passes through: heads of encoders, and buffers
            that are no weights.
    """

    part: Part
    prefix: str
    shape: Callable[[Described, list[str]], dict[str, Any]]
    table: Callable[[Described, dict[str, Any]], Iterator[Entry]]
    idle: re.Pattern[str]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a checkpoint of another class has become.

    Attributes:
        part: of our model.
        shape: its configuration.
        values: its tensors, by our names.
        left_out: tensors that have no place here, such as the pooler of an encoder.
        notes: what else there is to say.
    """

    part: Part
    shape: dict[str, Any]
    values: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


def take(described: Described, tensors: Mapping[str, Tensor], *, place: str) -> Taken:
    """A checkpoint of a known class as a part of our model.

    Args:
        described: its config.json.
        tensors: by their names.
        place: what to call it in messages.

    Raises:
        CheckpointError: its class is unknown, does what we do not compute, or tensors are missing
            or left over; every fault is named.
    """
    kind = described.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        raise CheckpointError(
            f"{place} is of the kind {str(kind)[:40]!r}: what can be read are folders of "
            f"python -m tools.export, and {', '.join(FAMILIES)}"
        )
    faults: list[str] = []
    try:
        shape = family.shape(described, faults)
        faults += _checked(family.part, shape)
    except KeyError as missing:
        raise CheckpointError(f"{place}/config.json lacks {missing}: copy it again") from None
    except (TypeError, ValueError, AttributeError) as error:
        # A number that is none; pydantic's own error says which.
        why = fault_of(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"{place}/config.json is damaged: {why}; copy it again") from None
    if faults:
        raise CheckpointError(f"{place} cannot be computed here: {'; '.join(faults)}")
    theirs = {name.removeprefix(family.prefix): value for name, value in tensors.items()}
    entries = [
        entry.of_layer(layer)
        for entry in family.table(described, shape)
        for layer in (range(shape["num_layers"]) if "{}" in entry.ours else (0,))
    ]
    used = {name for entry in entries for name in entry.theirs}
    missing = sorted(used - theirs.keys())
    rest = sorted(theirs.keys() - used)
    if shape.get("tied_head") and "lm_head.weight" in rest:
        embedding = theirs.get(entries[0].theirs[0])
        if embedding is not None and theirs["lm_head.weight"].equal(embedding):
            rest.remove("lm_head.weight")
    left_out = [name for name in rest if family.idle.match(name)]
    left_over = [name for name in rest if name not in left_out]
    for what, names in (("it lacks", missing), ("it has left over", left_over)):
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            faults.append(f"{what} {', '.join(names[:6])}{more}")
    if faults:
        raise CheckpointError(
            f"{place} does not fit its config.json: {'; '.join(faults)}; no weight is dropped or "
            "drawn at random: name a whole checkpoint of this class"
        )
    values: dict[str, Tensor] = {}
    for entry in entries:
        try:
            made = entry.made(*(theirs[name] for name in entry.theirs))
        except (RuntimeError, IndexError, ZeroDivisionError):
            raise CheckpointError(
                f"{place}: {', '.join(entry.theirs)} do not have the sizes that its config.json "
                "says: copy both again"
            ) from None
        values[entry.ours] = made.contiguous()
    return Taken(part=family.part, shape=shape, values=values, left_out=left_out)


def _checked(part: Part, shape: Mapping[str, Any]) -> list[str]:
    """What is wrong with the shape, beyond what its fields refuse."""
    if part == "text":
        encoder = TextEncoderConfig.model_validate(shape)
        is_whole = encoder.width % encoder.heads == 0
        return [] if is_whole else [f"{encoder.heads} heads do not divide width {encoder.width}"]
    return list(DecoderConfig.model_validate(shape).faults("model.decoder"))


def grouped(*, groups: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Makes our fused projection of queries, keys and values, group by group."""

    def made(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def parts(whole: Tensor) -> Tensor:
            return whole.view(groups, -1, key.shape[0] // groups, *whole.shape[1:])

        fused = torch.cat([parts(query), parts(key), parts(value)], dim=1)
        return fused.reshape(-1, *query.shape[1:])

    return made


def transposed(value: Tensor) -> Tensor:
    """A weight of GPT-2, whose layers have it the other way round."""
    return value.t()


def _thirds(*, heads: int, is_weight: bool) -> Callable[[Tensor], Tensor]:
    """Makes our fused projection of GPT-2's."""

    def made(value: Tensor) -> Tensor:
        return grouped(groups=heads)(*(value.t() if is_weight else value).chunk(3))

    return made


def _llama(described: Described, faults: list[str]) -> dict[str, Any]:
    heads, width = described["num_attention_heads"], described["hidden_size"]
    is_qwen = described["model_type"] == "qwen2"
    rope = described.get("rope_parameters") or described.get("rope_scaling") or {}
    theta = rope.get("rope_theta", described.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        faults.append(
            f"rope_scaling {str(kind)[:40]!r}: positions are turned by plain rope alone, and with "
            "another scaling states would differ at every length"
        )
    if described.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) != 1.0:
        faults.append("partial_rotary_factor: rope turns all channels of a head")
    if described.get("hidden_act", "silu") != "silu":
        faults.append(f"hidden_act {str(described['hidden_act'])[:40]!r}: the gate is SiLU")
    slides = described.get("sliding_window") if described["model_type"] == "mistral" else None
    if described.get("use_sliding_window") or slides is not None:
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
        "norm_layer": "rms_norm",
        "norm_epsilon": described.get("rms_norm_eps", 1e-6),
        "activation": "swiglu",
        "biases": "qkv" if is_qwen else "all" if True in biases else "none",
        "kv_heads": None if groups == heads else groups,
        "head_width": described.get("head_dim"),
        "embedding_scale": 1.0,
    }


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


def _gelu(described: Described, key: str, faults: list[str]) -> str:
    found = str(described.get(key, "gelu"))
    if found not in _GELUS:
        faults.append(f"{key} {found[:40]!r}: the activation is one of {', '.join(_GELUS)}")
    return _GELUS.get(found, "gelu")


def _gpt2(described: Described, faults: list[str]) -> dict[str, Any]:
    if not described.get("scale_attn_weights", True):
        faults.append("scale_attn_weights: scores are divided by the root of the head's width")
    if described.get("scale_attn_by_inverse_layer_idx"):
        faults.append("scale_attn_by_inverse_layer_idx: scores are alike in all layers")
    if described.get("add_cross_attention"):
        faults.append("add_cross_attention: blocks have none")
    return {
        "vocabulary": described["vocab_size"],
        "width": described["n_embd"],
        "num_layers": described["n_layer"],
        "heads": described["n_head"],
        "feed_forward": described.get("n_inner") or 4 * described["n_embd"],
        "max_tokens": described["n_positions"],
        "norm": "pre",
        "tied_head": bool(described.get("tie_word_embeddings", True)),
        "positions": "learned",
        "norm_epsilon": described.get("layer_norm_epsilon", 1e-5),
        "activation": _gelu(described, "activation_function", faults),
        "embedding_scale": 1.0,
    }


def _gpt2_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    yield Entry(ours="decoder.embedding.weight", theirs=("wte.weight",))
    yield Entry(ours="decoder.positions.weight", theirs=("wpe.weight",))
    ours, theirs = "decoder.blocks.{}.", "h.{}."
    for kind in ("weight", "bias"):
        is_weight = kind == "weight"
        yield Entry(
            ours=f"{ours}attention.qkv.{kind}",
            theirs=(f"{theirs}attn.c_attn.{kind}",),
            made=_thirds(heads=shape["heads"], is_weight=is_weight),
        )
        for part, name in (
            ("attention.out", "attn.c_proj"),
            ("feed_forward.up", "mlp.c_fc"),
            ("feed_forward.down", "mlp.c_proj"),
        ):
            source = (f"{theirs}{name}.{kind}",)
            if is_weight:
                yield Entry(ours=f"{ours}{part}.{kind}", theirs=source, made=transposed)
            else:
                yield Entry(ours=f"{ours}{part}.{kind}", theirs=source)
        for part, name in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            yield Entry(ours=f"{ours}{part}.{kind}", theirs=(f"{theirs}{name}.{kind}",))
        yield Entry(ours=f"decoder.final_norm.{kind}", theirs=(f"ln_f.{kind}",))
    if not shape["tied_head"]:
        yield Entry(ours="decoder.head.weight", theirs=("lm_head.weight",))


def _bert(described: Described, faults: list[str]) -> dict[str, Any]:
    if described.get("position_embedding_type", "absolute") != "absolute":
        faults.append("position_embedding_type: positions are absolute")
    if described.get("is_decoder") or described.get("add_cross_attention"):
        faults.append("is_decoder: an encoder sees both ways")
    width = described["hidden_size"]
    inner = described.get("embedding_size") or width
    return {
        "kind": "text",
        "width": width,
        "num_layers": described["num_hidden_layers"],
        "heads": described["num_attention_heads"],
        "feed_forward": described["intermediate_size"],
        "max_tokens": described["max_position_embeddings"] - _first_position(described),
        "dropout": described.get("hidden_dropout_prob", 0.1),
        "norm": "post",
        "norm_epsilon": described.get("layer_norm_eps", 1e-12),
        "activation": _gelu(described, "hidden_act", faults),
        "relative_positions": False,
        "embedding_width": None if inner == width else inner,
    }


def _first_position(described: Described) -> int:
    """RoBERTa counts positions from behind its padding token's id."""
    if described["model_type"] == "roberta":
        return int(described.get("pad_token_id", 1)) + 1
    return 0


def _bert_table(described: Described, shape: dict[str, Any]) -> Iterator[Entry]:
    first = _first_position(described)

    def places(positions: Tensor, types: Tensor) -> Tensor:
        # All tokens of a span are of the first type.
        return positions[first:] + types[0]

    prefix = "encoders.text."
    yield Entry(ours=f"{prefix}embedding.weight", theirs=("embeddings.word_embeddings.weight",))
    yield Entry(
        ours=f"{prefix}positions.weight",
        theirs=(
            "embeddings.position_embeddings.weight",
            "embeddings.token_type_embeddings.weight",
        ),
        made=places,
    )
    ours, theirs = f"{prefix}blocks.{{}}.", "encoder.layer.{}."
    for kind in ("weight", "bias"):
        yield Entry(ours=f"{prefix}embedding_norm.{kind}", theirs=(f"embeddings.LayerNorm.{kind}",))
        if shape["embedding_width"] is not None:
            yield Entry(ours=f"{prefix}widening.{kind}", theirs=(f"embeddings_project.{kind}",))
        yield Entry(
            ours=f"{ours}attention.qkv.{kind}",
            theirs=tuple(
                f"{theirs}attention.self.{part}.{kind}" for part in ("query", "key", "value")
            ),
            made=grouped(groups=shape["heads"]),
        )
        for part, name in (
            ("attention.out", "attention.output.dense"),
            ("attention_norm", "attention.output.LayerNorm"),
            ("feed_forward.up", "intermediate.dense"),
            ("feed_forward.down", "output.dense"),
            ("feed_forward_norm", "output.LayerNorm"),
        ):
            yield Entry(ours=f"{ours}{part}.{kind}", theirs=(f"{theirs}{name}.{kind}",))


def _encoder(prefix: str) -> Family:
    heads = r"(pooler|cls|lm_head|classifier|(discriminator|generator)_\w+)\."
    buffers = r"embeddings\.(position|token_type)_ids$"
    return Family(
        part="text",
        prefix=prefix,
        shape=_bert,
        table=_bert_table,
        idle=re.compile(f"{heads}|{buffers}"),
    )


_LLAMA: Final = Family(
    part="decoder",
    prefix="model.",
    shape=_llama,
    table=_llama_table,
    idle=re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq$"),
)
_GPT2: Final = Family(
    part="decoder",
    prefix="transformer.",
    shape=_gpt2,
    table=_gpt2_table,
    idle=re.compile(r"h\.\d+\.attn\.(masked_)?bias$"),
)

FAMILIES: Final = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": _LLAMA,
    "gpt2": _GPT2,
    "bert": _encoder("bert."),
    "roberta": _encoder("roberta."),
    "electra": _encoder("electra."),
}
"""By `model_type` of config.json."""
