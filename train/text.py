"""Text to slots and back: prompts with spans marked in them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from model.encoders.text import TextEncoderConfig
from model.generate import generate
from model.semicausal import ModelConfig, SemiCausal
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text
from train.data.tokens import TOKENIZER_BYTES_AT_MOST, SpecialTokens, read_tokenizer
from train.errors import UserError
from train.prompt import TEXT, parse
from train.storage.place import Place


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


class Speaker:
    """A model and its tokenizer, which continue prompts (`train/prompt.py`).

    Args:
        model: in eval mode, whole on this process.
        tokenizer: file of the one it was trained with.

    Raises:
        UserError: the file is missing or is no tokenizer.
    """

    def __init__(self, model: SemiCausal, tokenizer: Place | Path):
        try:
            content = Place.of(tokenizer).read(limit_bytes=TOKENIZER_BYTES_AT_MOST)
        except OSError as error:
            told = error.strerror or error
            raise UserError(f"{tokenizer} cannot be read as a tokenizer: {told}") from None
        self.tokenizer = read_tokenizer(content, name=str(tokenizer))
        vocabulary = self.tokenizer.get_vocab()
        self.special = SpecialTokens.from_vocabulary(vocabulary)
        self.model = model
        known = model.decoder.config.vocabulary
        if max(vocabulary.values()) >= known:
            raise UserError(
                f"{tokenizer} has tokens up to {max(vocabulary.values())}, the model {known} in "
                "all: name the tokenizer of the corpus that it was trained on"
            )

    def encode(self, prompt: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of the prompt behind `<s>`, and the ranges of its spans.

        Raises:
            UserError: the marks of the prompt's spans make no sense.
        """
        tokens, spans = [self.special.start], list[tuple[int, int]]()
        reader = text_encoder(self.model.config)
        for part in parse(prompt, modality=TEXT if reader is None else reader[0]):
            ids = self.tokenizer.encode(part.text, add_special_tokens=False).ids
            if part.is_span and ids:
                spans.append((len(tokens), len(tokens) + len(ids)))
            tokens += ids
        return tokens, spans

    def speak(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        top_p: float = 0.0,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Text that continues the prompt.

        Raises:
            UserError: the prompt is too long, or marks spans that no encoder can read; or the model
                is not finite.
        """
        tokens, spans = self.encode(prompt)
        room = self.model.decoder.config.max_tokens
        if len(tokens) > room:
            raise UserError(f"the prompt has {len(tokens)} tokens, the model reads {room}")
        device = next(self.model.parameters()).device
        packed = None
        if spans:
            reader = text_encoder(self.model.config)
            if reader is None:
                raise UserError("the model has no text encoder: remove the [[ ]] from the prompt")
            modality, encoder = reader
            longest = encoder.longest_span
            if max(stop - start for start, stop in spans) > longest:
                raise UserError(f"a span of the prompt exceeds the encoder's {longest} tokens")
            capacity = SpanCapacity(tokens=len(tokens), spans=len(spans), longest_tokens=longest)
            read = pack_text(
                np.array([tokens], dtype=np.int64),
                FlatSpans.of([np.array(spans, dtype=np.int64)]),
                capacity=capacity,
                start_token=encoder.start_token,
            )
            packed = {modality: read.to(device)}
        new = generate(
            self.model,
            torch.tensor([tokens], device=device),
            spans=packed,
            max_new_tokens=max_new_tokens,
            top_p=top_p,
            temperature=temperature,
            stop_token=self.special.document,
            generator=torch.Generator(device).manual_seed(seed),
        )
        try:
            return self._decode(list(new))
        except FloatingPointError as error:
            raise UserError(f"{error}: name another checkpoint, or train on from one") from None

    def _decode(self, tokens: list[int]) -> str:
        """Text of tokens; the end of a paragraph begins a new line."""
        ends = [at for at, token in enumerate(tokens) if token == self.special.paragraph]
        bounds = pairwise([-1, *ends, len(tokens)])
        return "\n".join(self.tokenizer.decode(tokens[last + 1 : end]) for last, end in bounds)
