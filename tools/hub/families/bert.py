"""BERT and its family: RoBERTa and ELECTRA."""

import re
from collections.abc import Iterator
from typing import Any, Final

from torch import Tensor

from tools.hub.families.table import Described, Entry, Family, gelu, grouped


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
        "activation": gelu(described, "hidden_act", faults),
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
        taken_apart=None,
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


def _family(prefix: str) -> Family:
    heads = r"(pooler|cls|lm_head|classifier|(discriminator|generator)_\w+)\."
    buffers = r"embeddings\.(position|token_type)_ids$"
    return Family(
        part="text",
        prefix=prefix,
        shape=_bert,
        table=_bert_table,
        idle=re.compile(f"{heads}|{buffers}"),
    )


BERT: Final = _family("bert.")
ROBERTA: Final = _family("roberta.")
ELECTRA: Final = _family("electra.")
