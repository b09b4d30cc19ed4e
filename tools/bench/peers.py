"""Other implementations of the same model: equal width, depth, heads, vocabulary and parameters."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model import torchvision_free
from model.batch import Batch
from tools.bench.shapes import Shape
from tools.bench.training import num_parameters

torchvision_free.install()  # transformers, which each peer imports, would look for it

TOLERANCE = 0.01
"""How far a peer's parameter count may be from ours."""

MULTIPLE = 8
"""Feed-forward widths are multiples of it."""


def has_litgpt() -> bool:
    """Whether litgpt is installed; it is in the `bench` extra alone."""
    return importlib.util.find_spec("litgpt") is not None


@dataclass(frozen=True)
class Peer:
    """Another implementation.

    Attributes:
        build: makes it for a feed-forward width.
        loss: its own loss of a batch without spans.
        hidden: feed-forward width over the model's by its convention; a gated one has three
            matrices instead of two, and so 8/3 instead of 4.
    """

    build: Callable[[Shape, int], nn.Module]
    loss: Callable[[Any, Batch], Tensor]
    hidden: float


def matched(peer: Peer, shape: Shape, *, parameters: int) -> nn.Module:
    """The peer whose parameter count is within tolerance of ours.

    Of the feed-forward widths that do, the one nearest to its convention is taken: a peer changes
    no more than it must. Counted on the meta device, so trying is free.
    """
    hidden = round(peer.hidden * shape.width / MULTIPLE) * MULTIPLE
    for offset in range(0, hidden, MULTIPLE):
        for candidate in (hidden + offset, hidden - offset):
            with torch.device("meta"):
                count = num_parameters(peer.build(shape, candidate))
            if abs(count / parameters - 1) < TOLERANCE:
                return peer.build(shape, candidate)
    raise AssertionError(f"no feed-forward width near {hidden} gives {parameters} parameters")


def llama(shape: Shape, hidden: int) -> nn.Module:
    """Hugging Face's LlamaForCausalLM."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(shape, hidden))


def llama_config(shape: Shape, hidden: int) -> Any:
    """What Hugging Face calls this shape of Llama."""
    from transformers import LlamaConfig

    return LlamaConfig(
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


def gpt2(shape: Shape, hidden: int) -> nn.Module:
    """Hugging Face's GPT2LMHeadModel with our GELU (the exact one) and no dropout."""
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


def transformers_loss(model: Any, batch: Batch) -> Tensor:
    """Hugging Face's own loss; the class shifts the labels itself."""
    return model(input_ids=batch.tokens, labels=batch.tokens).loss


def litgpt_loss(model: Any, batch: Batch) -> Tensor:
    """The loss of litgpt's pretraining loop, in its own chunks."""
    from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports]  # an extra

    return chunked_cross_entropy(model(batch.tokens), batch.labels)


PEERS = {
    "llama": Peer(llama, transformers_loss, hidden=8 / 3),
    "gpt2": Peer(gpt2, transformers_loss, hidden=4),
    "litgpt": Peer(litgpt, litgpt_loss, hidden=8 / 3),
}
