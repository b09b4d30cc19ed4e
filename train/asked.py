"""What is asked of a model: prompts, how they are to be continued, and the spans in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.batch import PackedSpans
from model.encoders.text import TextEncoderConfig
from model.generation.picking import GREEDY, Sampling
from model.semicausal import ModelConfig
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text
from train.errors import UserError
from train.prompt import TEXT, parse


def text_encoder(model: ModelConfig) -> tuple[str, TextEncoderConfig] | None:
    """The encoder that reads tokens, behind the name of its modality; None without one."""
    for modality, part in model.encoders.items():
        if isinstance(part.encoder, TextEncoderConfig):
            return modality, part.encoder
    return None


def prompt_fault(prompts: Sequence[str], model: ModelConfig) -> str | None:
    """What is wrong with the marks of the first prompt that cannot be read; None if all can."""
    reader = text_encoder(model)
    try:
        for prompt in prompts:
            parse(prompt, modality=TEXT if reader is None else reader[0])
    except UserError as error:
        return str(error)
    return None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt, and how it is to be continued.

    Attributes:
        prompt: text with spans marked in it (`train/prompt.py`), or tokens, which have no spans and
            are read as they are, or what was read of either.
        max_new_tokens: at most this many; fewer if the decoder's positions run out.
        sampling: how tokens are picked.
        stop: strings, each of which ends the text before it.
        choices: texts, one of which the answer is to be.
        num_top: how many of the likeliest tokens to tell of with each; None tells no
            log-probabilities.
        echoes: whether to tell of the prompt's tokens too.
        adapter: name of the adapter to answer with; None is the base alone.
    """

    prompt: "str | Sequence[int] | Prompt"
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    num_top: int | None = None
    echoes: bool = False
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt that the model can read.

    Attributes:
        tokens: at least one, and no more than the decoder has positions.
        spans: ranges of tokens that the encoder reads.
    """

    tokens: list[int]
    spans: list[tuple[int, int]]


def pack(
    model: ModelConfig, prompts: Sequence[Prompt], *, device: torch.device
) -> Mapping[str, PackedSpans] | None:
    """The spans of prompts whose rows begin at slot 0 and are as long as the longest."""
    reader = text_encoder(model)
    if reader is None or not any(prompt.spans for prompt in prompts):
        return None
    modality, encoder = reader
    longest = max(len(prompt.tokens) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt.tokens)] = prompt.tokens
    read = pack_text(
        tokens,
        FlatSpans.of([np.array(p.spans, dtype=np.int64).reshape(-1, 2) for p in prompts]),
        # No room is needed beyond what they take.
        capacity=SpanCapacity(tokens=0, spans=0, longest_tokens=encoder.longest_span),
        start_token=encoder.start_token,
    )
    return {modality: read.to(device)}
