"""What is asked of a model: prompts, how they are to be continued, and the spans in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer

from model.batch import PackedSpans
from model.encoders.text import TextEncoderConfig
from model.generation.picking import GREEDY, Sampling
from model.semicausal import ModelConfig
from train.data.document import MEDIA, Kind
from train.data.segments import TextSegment, paragraphs
from train.data.slots import Vectors
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text
from train.data.tokens import SPECIAL_TEXT, SpecialTokens, encode_apart
from train.errors import UserError
from train.prompt import TEXT, parse, segments_of


def text_encoder(model: ModelConfig) -> tuple[str, TextEncoderConfig] | None:
    """The encoder that reads tokens, behind the name of its modality; None without one."""
    for modality, part in model.encoders.items():
        if isinstance(part.encoder, TextEncoderConfig):
            return modality, part.encoder
    return None


def item_vectors(model: ModelConfig) -> Mapping[Kind, Vectors]:
    """Slots of an item by its size, for each modality that an encoder of the model reads."""
    return {
        kind: part.encoder.item_vectors
        for kind, name in MEDIA.items()
        if (part := model.encoders.get(name)) is not None
    }


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


class PromptEncoder:
    """Makes tokens of prompts, those that a corpus of the same text would hold.

    Each paragraph and each span is encoded by itself, and `</s>` ends paragraphs; what spells a
    special token in a text is text.

    Args:
        tokenizer: that the model was trained with.
        modality: of the encoder that reads text.

    Attributes:
        special: ids of the special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, modality: str = TEXT):
        # Special whatever its file says of them: only such are kept apart from text.
        tokenizer.add_special_tokens(list(SPECIAL_TEXT.values()))
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._modality = modality
        self.special = SpecialTokens.from_vocabulary(tokenizer.get_vocab())
        self._control = {*self.special.to_manifest().values()}

    def __call__(self, prompt: str) -> Prompt:
        """A prompt behind `<s>`, whose last paragraph goes on.

        Spaces at its end are not read, for a word's token begins with its own; a line end is.

        Raises:
            UserError: the marks of its spans make no sense.
        """
        segments = segments_of(prompt, modality=self._modality)
        read = self.segments(segments)
        if segments and not (segments[-1].is_span or segments[-1].ends_paragraph):
            text = segments[-1].text
            if "\n" in text[len(text.rstrip()) :]:
                return replace(read, tokens=[*read.tokens, *self._encode("\n")])
        return read

    def segments(self, segments: Sequence[TextSegment]) -> Prompt:
        """Segments of a document behind `<s>`; tokens of spans are among the others.

        Raises:
            DataError: the tokenizer makes a special token of a character.
        """
        tokens = [self.special.start]
        spans: list[tuple[int, int]] = []
        for segment in segments:
            found = self.tokens(segment)
            if segment.is_span and found:
                spans.append((len(tokens), len(tokens) + len(found)))
            tokens += found
            if segment.ends_paragraph and found:
                tokens.append(self.special.paragraph)
        return Prompt(tokens=tokens, spans=spans)

    def tokens(self, segment: TextSegment) -> list[int]:
        """Those of a segment, without the end of its last paragraph.

        Raises:
            DataError: as `segments`.
        """
        found: list[int] = []
        for text in [segment.text] if segment.is_span else paragraphs(segment.text):
            ids = self._encode(text)
            if found and ids:
                found.append(self.special.paragraph)
            found += ids
        return found

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._control.isdisjoint(ids):
            return ids
        return encode_apart(self._tokenizer, text, self._control)


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
