"""What is asked of a model: prompts, how they are to be continued, and the spans in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from model.batch import PackedSpans
from model.encoders.protocol import ItemEncoderKind
from model.encoders.text import TextEncoderConfig
from model.generation.picking import GREEDY, Sampling
from model.semicausal import ModelConfig
from train.data.document import MEDIA, Kind
from train.data.sample import SampleItem
from train.data.segments import MediaSegment, Segment, TextSegment, paragraphs
from train.data.slots import Vectors
from train.data.spans.kinds import MEDIA_SPANS
from train.data.spans.media import MediaReader
from train.data.spans.places import FlatSpans, Ints
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text
from train.data.tokens import SPECIAL_TEXT, SpecialTokens, encode_apart
from train.errors import DataError, UserError
from train.prompt import TEXT, Items, parse, segments_of


def text_encoder(model: ModelConfig) -> tuple[str, TextEncoderConfig] | None:
    """The encoder that reads tokens, behind the name of its modality; None without one."""
    for modality, part in model.encoders.items():
        if isinstance(part.encoder, TextEncoderConfig):
            return modality, part.encoder
    return None


def item_vectors(model: ModelConfig) -> Mapping[Kind, Vectors]:
    """Slots of an item by its size, for each modality that an encoder of the model reads."""
    return {
        kind: part.item_slots
        for kind, name in MEDIA.items()
        if (part := model.encoders.get(name)) is not None
        and isinstance(part.encoder, ItemEncoderKind)
    }


def text_modality(model: ModelConfig) -> str | None:
    """Name of the modality that an encoder reads as text; None without one."""
    found = text_encoder(model)
    return None if found is None else found[0]


def prompt_fault(prompts: Sequence[str], model: ModelConfig) -> str | None:
    """What is wrong with the marks of the first prompt that cannot be read; None if all can."""
    try:
        for prompt in prompts:
            parse(prompt, modality=text_modality(model))
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
        items: of other modalities, in rising order; their slots hold padding.
        contents: what encoders read of each item; empty as long as that was not made of its file.
    """

    tokens: list[int]
    spans: list[tuple[int, int]]
    items: list[SampleItem] = field(default_factory=list[SampleItem])
    contents: list[Any] = field(default_factory=list[Any])


class PromptEncoder:
    """Makes tokens of prompts, those that a corpus of the same text would hold.

    Each paragraph and each span is encoded by itself, and `</s>` ends paragraphs; what spells a
    special token in a text is text.

    Args:
        tokenizer: that the model was trained with.
        modality: of the encoder that reads text; None without one.
        vectors: slots of an item by its size, for each modality that an encoder reads.

    Attributes:
        special: ids of the special tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        modality: str | None = TEXT,
        vectors: Mapping[Kind, Vectors] | None = None,
    ):
        # Special whatever its file says of them: only such are kept apart from text.
        tokenizer.add_special_tokens(list(SPECIAL_TEXT.values()))
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._modality = modality
        self._vectors = vectors or {}
        self.special = SpecialTokens.from_vocabulary(tokenizer.get_vocab())
        self._control = {*self.special.to_manifest().values()}

    def __call__(self, prompt: str, items: Items | None = None) -> Prompt:
        """A prompt behind `<s>`, whose last paragraph goes on.

        Spaces at its end are not read, for a word's token begins with its own; a line end is.

        Args:
            prompt: with marks.
            items: what its marks of other modalities name; without, these are refused.

        Raises:
            UserError: the marks of its spans make no sense, or name what cannot be read.
        """
        known = None if items is None else self._known(items)
        segments = segments_of(prompt, modality=self._modality, items=known)
        read = self.segments(segments)
        last = segments[-1] if segments else None
        if not isinstance(last, TextSegment) or last.is_span or last.ends_paragraph:
            return read
        if "\n" in last.text[len(last.text.rstrip()) :]:
            return replace(read, tokens=[*read.tokens, *self._encode("\n")])
        return read

    def _known(self, items: Items) -> Items:
        """Items for which there is an encoder, looked at before anything is opened."""

        def known(kind: Kind, name: str) -> MediaSegment:
            if kind in self._vectors:
                return items(kind, name)
            there = [self._modality] if self._modality else []
            there += [MEDIA[each] for each in MEDIA if each in self._vectors]
            raise UserError(
                f"the prompt's [[{MEDIA[kind]}:{name}]]: the model has no encoder of "
                f"{MEDIA[kind]}, its encoders read {', '.join(there) or 'nothing'}: leave it out, "
                "or name a run that has one"
            )

        return known

    def segments(self, segments: Sequence[Segment], *, name: str = "the prompt") -> Prompt:
        """Segments of a document behind `<s>`; tokens of spans are among the others.

        Args:
            segments: of it.
            name: of what it belongs to, for messages.

        Raises:
            DataError: the tokenizer makes a special token of a character, or no encoder reads an
                item, or one that is so large.
        """
        tokens = [self.special.start]
        spans: list[tuple[int, int]] = []
        items: list[SampleItem] = []
        for segment in segments:
            if isinstance(segment, MediaSegment):
                item = self._item(segment, len(tokens), name)
                tokens += [self.special.padding] * (item.stop - item.start)
                items.append(item)
                continue
            found = self.tokens(segment)
            if segment.is_span and found:
                spans.append((len(tokens), len(tokens) + len(found)))
            tokens += found
            if segment.ends_paragraph and found:
                tokens.append(self.special.paragraph)
        return Prompt(tokens=tokens, spans=spans, items=items)

    def _item(self, segment: MediaSegment, start: int, name: str) -> SampleItem:
        medium = MEDIA[segment.kind]
        if segment.kind not in self._vectors:
            raise DataError(f"{name}: the model has no encoder that reads its {medium}")
        try:
            slots = self._vectors[segment.kind](segment.size)
        except ValueError as error:
            raise DataError(f"{segment.name or name} {error}") from error
        return SampleItem(
            kind=segment.kind,
            size=segment.size,
            data=segment.data,
            start=start,
            stop=start + slots,
            name=segment.name or f"{name}: its {medium}",
        )

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
    """The spans of prompts whose rows begin at slot 0 and are as long as the longest.

    Raises:
        DataError: an item cannot be read; the message names it.
    """
    longest = max(len(prompt.tokens) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt.tokens)] = prompt.tokens
    packed: dict[str, PackedSpans] = {}
    reader = text_encoder(model)
    if reader is not None and any(prompt.spans for prompt in prompts):
        modality, encoder = reader
        packed[modality] = pack_text(
            tokens,
            _flat([prompt.spans for prompt in prompts]),
            # No room is needed beyond what they take.
            capacity=SpanCapacity(tokens=0, spans=0, longest_tokens=encoder.longest_span),
            start_token=encoder.start_token,
        )
    for kind in sorted({item.kind for prompt in prompts for item in prompt.items}):
        packed[MEDIA[kind]] = _pack_items(model, kind, prompts, tokens)
    return {modality: spans.to(device) for modality, spans in packed.items()} or None


def with_contents(model: ModelConfig, prompt: Prompt) -> Prompt:
    """A prompt of whose items is made what encoders read; their files are let go.

    Raises:
        DataError: one cannot be read; the message names it.
    """
    if len(prompt.contents) == len(prompt.items):
        return prompt
    contents = [_content(_reader(model, item.kind), item) for item in prompt.items]
    items = [replace(item, data=b"") for item in prompt.items]
    return replace(prompt, items=items, contents=contents)


def _pack_items(
    model: ModelConfig, kind: Kind, prompts: Sequence[Prompt], tokens: Ints
) -> PackedSpans:
    """The items of one modality."""
    reader = _reader(model, kind)
    contents: list[Any] = []
    ranges: list[list[tuple[int, int]]] = []
    for prompt in prompts:
        read = prompt.contents or [None] * len(prompt.items)
        mine = [pair for pair in zip(prompt.items, read, strict=True) if pair[0].kind == kind]
        contents += [_content(reader, item) if got is None else got for item, got in mine]
        ranges.append([(item.start, item.stop) for item, _ in mine])
    return reader.arrays(contents, tokens, _flat(ranges))


def _reader(model: ModelConfig, kind: Kind) -> MediaReader[Any, Any]:
    part = model.encoders[MEDIA[kind]]
    return MEDIA_SPANS[kind].reader(
        part.encoder,
        capacity=SpanCapacity(
            tokens=0,
            spans=0,
            longest_tokens=part.longest_span,
            item_slots=part.connector.item_slots,
        ),
        seed=0,
        special=SpecialTokens(),
    )


def _content(reader: MediaReader[Any, Any], item: SampleItem) -> Any:
    try:
        return reader.read(item)
    except ValueError as error:
        raise DataError(f"{item.name} {error}") from error


def _flat(spans: Sequence[Sequence[tuple[int, int]]]) -> FlatSpans:
    return FlatSpans.of([np.array(some, dtype=np.int64).reshape(-1, 2) for some in spans])
