"""GPT-2."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from tools.hub.families.table import Described, Entry, Family, apart, gelu, grouped


def transposed(value: Tensor) -> Tensor:
    """A weight of GPT-2, whose layers have it the other way round."""
    return value.t()


def _thirds(*, heads: int, is_weight: bool) -> Callable[[Tensor], Tensor]:
    """Makes our fused projection of GPT-2's."""

    def made(value: Tensor) -> Tensor:
        return grouped(groups=heads)(*(value.t() if is_weight else value).chunk(3))

    return made


def _in_thirds(*, heads: int, is_weight: bool) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Makes GPT-2's fused projection of ours."""

    def made(fused: Tensor) -> tuple[Tensor, ...]:
        whole = torch.cat(apart(groups=heads, shared=1)(fused))
        return (whole.t() if is_weight else whole,)

    return made


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
        "activation": gelu(described, "activation_function", faults),
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
            taken_apart=_in_thirds(heads=shape["heads"], is_weight=is_weight),
        )
        for part, name in (
            ("attention.out", "attn.c_proj"),
            ("feed_forward.up", "mlp.c_fc"),
            ("feed_forward.down", "mlp.c_proj"),
        ):
            source = (f"{theirs}{name}.{kind}",)
            if is_weight:
                back = lambda value: (value.t(),)  # noqa: E731
                yield Entry(
                    ours=f"{ours}{part}.{kind}", theirs=source, made=transposed, taken_apart=back
                )
            else:
                yield Entry(ours=f"{ours}{part}.{kind}", theirs=source)
        for part, name in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            yield Entry(ours=f"{ours}{part}.{kind}", theirs=(f"{theirs}{name}.{kind}",))
        yield Entry(ours=f"decoder.final_norm.{kind}", theirs=(f"ln_f.{kind}",))
    if not shape["tied_head"]:
        yield Entry(ours="decoder.head.weight", theirs=("lm_head.weight",))


GPT2: Final = Family(
    part="decoder",
    prefix="transformer.",
    shape=_gpt2,
    table=_gpt2_table,
    idle=re.compile(r"h\.\d+\.attn\.(masked_)?bias$"),
)
