"""Models that are exported, and classes of transformers that are imported, tiny and random."""

from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor

from model.encoders.text import TextEncoder
from model.semicausal import SemiCausal
from tests.tiny_pictures import PICTURES
from train.asked import Prompt, pack
from train.checkpoint.restore import load_weights
from train.loading import load_config, load_model

CPU = torch.device("cpu")

_PRE = "model.decoder.norm=pre"
_ROPE: Final = (
    *(_PRE, "model.decoder.positions=rope", "model.decoder.embedding_scale=20"),
    *("model.decoder.norm_layer=rms_norm", "model.decoder.activation=swiglu"),
)
_BERT: Final = (
    *("model.encoders.text.encoder.norm=post", "model.encoders.text.encoder.norm_epsilon=1e-12"),
    "model.encoders.text.encoder.relative_positions=false",
)

_BEIT: Final = (
    *("max_patches=null", "size=[17, 24]", "fit=crop", "resized=[20, 28]", "class_token=kept"),
    *("relative_positions=each", "layer_scale=0.5", "activation=quick_gelu", "embedding_norm=true"),
)

EXPORTED: Final[dict[str, tuple[str, ...]]] = {
    "deepnorm": (),
    "pre": (_PRE,),
    "untied, mlp": (
        "model.decoder.tied_head=false",
        "model.encoders.text.connector={kind: mlp, num_layers: 3}",
    ),
    "decoder alone": ("spans.text.ratio=0",),
    "gpt2": (
        *(_PRE, "model.decoder.positions=learned", "model.decoder.activation=gelu_tanh"),
        *("model.decoder.embedding_scale=20", *_BERT),
    ),
    "llama": (*_ROPE, "model.decoder.biases=none", "model.decoder.kv_heads=2"),
    "llama, stretched": (
        *(*_ROPE, "model.decoder.biases=none"),
        "model.decoder.rope_scaling={kind: llama3, factor: 8, original_tokens: 16}",
    ),
    "qwen2": (
        *(*_ROPE, "model.decoder.biases=qkv", "model.decoder.kv_heads=1"),
        *("model.decoder.head_width=12", "model.decoder.tied_head=false"),
        *(*_BERT, "model.encoders.text.encoder.embedding_width=8"),
    ),
    "text and pictures": PICTURES,
    "pictures of one size": (
        *(*PICTURES, *(f"model.encoders.image.encoder.{option}" for option in _BEIT)),
        *("spans.text.ratio=0", "model.encoders.image.connector={kind: mlp, num_layers: 2}"),
    ),
    "pictures behind a resampler": (
        *(*PICTURES, "model.encoders.image.connector={kind: resampler, queries: 5}"),
    ),
}
"""Overrides of the tiny run."""

_LLAMA: Final = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5_000.0,
    "tie_word_embeddings": False,
}
_LLAMA3: Final = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
"""Of eight channels a head, one wavelength is kept, one stretched in part, two whole."""
_BERT_SIZES: Final = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
_GPT2: Final = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}

IMPORTED: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("LlamaForCausalLM", _LLAMA),
    "llama, biases, wide heads": (
        "LlamaForCausalLM",
        _LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 12},
    ),
    "llama, tied": (
        "LlamaForCausalLM",
        _LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 4},
    ),
    "llama 3": ("LlamaForCausalLM", _LLAMA | {"rope_scaling": _LLAMA3}),
    "llama, linear": (
        "LlamaForCausalLM",
        _LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    ),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "mistral": ("MistralForCausalLM", _LLAMA | {"sliding_window": None, "head_dim": 8}),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt2, bare": ("GPT2Model", _GPT2 | {"activation_function": "gelu", "n_inner": 40}),
    "bert": ("BertModel", _BERT_SIZES),
    "bert, with heads": ("BertForMaskedLM", _BERT_SIZES | {"hidden_act": "gelu_new"}),
    "roberta": ("RobertaModel", _BERT_SIZES | {"pad_token_id": 1}),
    "electra": ("ElectraModel", _BERT_SIZES | {"embedding_size": 16}),
    "electra, of one width": ("ElectraForPreTraining", _BERT_SIZES | {"embedding_size": 32}),
}
"""Class and configuration."""

DECODERS: Final = ("llama", "qwen2", "mistral", "gpt2")


def random_instance(class_name: str, options: dict[str, Any]) -> Any:
    """A model of a class of transformers with weights that are nowhere trivial."""
    cls: Any = getattr(transformers, class_name)
    model = cls(cls.config_class(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise * (0.1 if is_gain else 0.2) + (1.0 if is_gain else 0.0))
    return model


@torch.no_grad()
def hidden_difference(theirs: Any, checkpoint: Path, tokens: list[int]) -> float:
    """Largest difference of last hidden states, theirs being those of the class itself.

    Args:
        theirs: the model of transformers.
        checkpoint: what it was imported to.
        tokens: that both read; of a span for encoders, its start token first.
    """
    states = theirs(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
    if theirs.config.model_type in DECODERS:
        model = load_model(checkpoint, device=CPU)
        ours = model.decoder(model.inputs(torch.tensor([tokens])))[0]
        return float((ours - states).abs().max())
    encoder = encoder_of(checkpoint)
    ours = encoder_states(encoder, tokens[1:])
    return float((ours - states[1:]).abs().max())


def encoder_of(checkpoint: Path) -> SemiCausal:
    """A model whose text encoder has the checkpoint's weights."""
    model = SemiCausal(load_config(checkpoint).model).eval()
    load_weights(checkpoint, model.encoders["text"], prefix="encoders.text.")
    return model


def encoder_states(model: SemiCausal, tokens: list[int]) -> Tensor:
    """Vectors of one span among others, which are packed beside it."""
    encoder = model.encoders["text"]
    assert isinstance(encoder, TextEncoder)
    beside = [7] * 3
    prompt = Prompt(tokens=beside + tokens, spans=[(0, 3), (3, 3 + len(tokens))])
    batch = pack(model.config, [prompt], device=CPU)
    assert batch is not None
    return encoder(batch["text"])[3:]
