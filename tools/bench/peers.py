"""Other implementations of the same model: equal width, depth, heads, vocabulary and parameters."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model import torchvision_free
from tools.bench.shapes import Shape

TOLERANCE = 0.01
"""How far a peer's parameter count may be from ours."""

MULTIPLE = 8
"""Feed-forward widths are multiples of it."""


def has_litgpt() -> bool:
    """Whether litgpt is installed; it is in the `bench` extra alone."""
    return importlib.util.find_spec("litgpt") is not None


def matched(
    build: Callable[[int], nn.Module], *, hidden: int, parameters: int
) -> tuple[nn.Module, int]:
    """The peer whose parameter count is within tolerance of ours, and its feed-forward width.

    Of the widths that do, the one nearest to `hidden` is taken: a peer changes no more than it
    must. Counted on the meta device, so trying is free.

    Args:
        build: makes the peer for a feed-forward width.
        hidden: the width it would have by its own convention.
        parameters: our count.
    """
    for offset in range(0, hidden, MULTIPLE):
        for candidate in (hidden + offset, hidden - offset):
            if candidate < MULTIPLE:
                continue
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in build(candidate).parameters())
            if abs(count / parameters - 1) < TOLERANCE:
                return build(candidate), candidate
    raise AssertionError(f"no feed-forward width near {hidden} gives {parameters} parameters")


def llama(shape: Shape, hidden: int) -> nn.Module:
    """Hugging Face's LlamaForCausalLM."""
    torchvision_free.install()
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.width,
            intermediate_size=hidden,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            vocab_size=shape.vocabulary,
            max_position_embeddings=shape.sequence_tokens,
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )


def gpt2(shape: Shape, hidden: int) -> nn.Module:
    """Hugging Face's GPT2LMHeadModel with our GELU (the exact one) and no dropout."""
    torchvision_free.install()
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            n_embd=shape.width,
            n_inner=hidden,
            n_layer=shape.num_layers,
            n_head=shape.heads,
            vocab_size=shape.vocabulary,
            n_positions=shape.sequence_tokens,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    # What it falls back to with a warning, its class not being called ForCausalLM.
    model.loss_type = "ForCausalLM"
    return model


def litgpt(shape: Shape, hidden: int) -> nn.Module:
    """Litgpt's GPT in its Llama form, which its pretraining recipes use, with a tied head."""
    torchvision_free.install()
    from litgpt import GPT, Config  # pyright: ignore[reportMissingImports]  # an extra

    model = GPT(
        Config(
            n_embd=shape.width,
            n_layer=shape.num_layers,
            n_head=shape.heads,
            n_query_groups=shape.heads,
            intermediate_size=hidden,
            vocab_size=shape.vocabulary,
            padded_vocab_size=shape.vocabulary,
            block_size=shape.sequence_tokens,
            bias=False,
            parallel_residual=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            rotary_percentage=1.0,
        )
    )
    embedding = model.transformer["wte"]
    assert isinstance(embedding, nn.Embedding)
    embedding.weight = model.lm_head.weight
    model.apply(model._init_weights)
    return model


def transformers_losses(model: Any, tokens: Tensor) -> Callable[[], Tensor]:
    """Hugging Face's own loss; the class shifts the labels itself."""
    return lambda: model(input_ids=tokens, labels=tokens).loss


def litgpt_losses(model: Any, tokens: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """The loss of litgpt's pretraining loop, in its own chunks."""
    from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports]  # an extra

    return lambda: chunked_cross_entropy(model(tokens), labels)
