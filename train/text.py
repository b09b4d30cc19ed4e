"""Text to slots and back: prompts with spans marked in them."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from model.encoders.text import TextEncoderConfig
from model.generate import generate
from model.semicausal import SemiCausal
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text
from train.data.tokens import SpecialTokens
from train.errors import UserError
from train.storage.place import Place

SPAN = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)


def plain(prompt: str) -> str:
    """The prompt without marks, for a model that has no encoder."""
    return SPAN.sub(r"\1", prompt)


class Speaker:
    """A model, its tokenizer, and the marks of spans in prompts: [[ read by the encoder ]].

    Args:
        model: in eval mode, whole on this process.
        tokenizer: file of the one it was trained with.

    Raises:
        UserError: the file is missing or is no tokenizer.
    """

    def __init__(self, model: SemiCausal, tokenizer: Place | Path):
        try:
            self.tokenizer = Tokenizer.from_buffer(Place.of(tokenizer).read())
        except Exception as error:  # the library raises nothing more precise
            raise UserError(f"{tokenizer} cannot be read as a tokenizer: {error}") from None
        self.model = model
        self.special = SpecialTokens.from_vocabulary(self.tokenizer.get_vocab())

    def encode(self, prompt: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of the prompt behind `<s>`, and the ranges of its spans."""
        tokens, spans = [self.special.start], list[tuple[int, int]]()
        pieces = SPAN.split(prompt)
        for index in range(1, len(pieces), 2):
            # A word's token begins with its space: that space belongs to the span.
            before = pieces[index - 1].rstrip(" ")
            pieces[index] = pieces[index - 1][len(before) :] + pieces[index]
            pieces[index - 1] = before
        for index, piece in enumerate(pieces):
            ids = self.tokenizer.encode(piece, add_special_tokens=False).ids
            if index % 2 and ids:
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
            UserError: the prompt is too long, or marks spans that no encoder can read.
        """
        tokens, spans = self.encode(prompt)
        room = self.model.decoder.config.max_tokens
        if len(tokens) > room:
            raise UserError(f"the prompt has {len(tokens)} tokens, the model reads {room}")
        device = next(self.model.parameters()).device
        packed = None
        if spans:
            modality, encoder = self._reader()
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
        return self._decode(list(new))

    def _reader(self) -> tuple[str, TextEncoderConfig]:
        """The encoder that reads tokens, with the name of its modality."""
        for modality, part in self.model.config.encoders.items():
            if isinstance(part.encoder, TextEncoderConfig):
                return modality, part.encoder
        raise UserError("the model has no text encoder: remove the [[ ]] from the prompt")

    def _decode(self, tokens: list[int]) -> str:
        """Text of tokens; the end of a paragraph begins a new line."""
        ends = [at for at, token in enumerate(tokens) if token == self.special.paragraph]
        bounds = pairwise([-1, *ends, len(tokens)])
        return "\n".join(self.tokenizer.decode(tokens[last + 1 : end]) for last, end in bounds)
