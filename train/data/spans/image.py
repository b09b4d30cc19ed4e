"""Spans of pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from model.encoders.image import ImageEncoderConfig, ImageSpans
from model.encoders.protocol import EncoderKind, ItemEncoderKind
from train.data.document import Kind
from train.data.sample import Sample, SampleItem
from train.data.spans.augment import AugmentConfig
from train.data.spans.media import MediaReader, MediaSpansConfig
from train.data.spans.picture import Picture, black_picture, pack_pictures, read_picture, vectors_of
from train.data.spans.places import FlatSpans, Ints, Spans
from train.data.spans.prefix import PrefixConfig, spans_with_text
from train.data.spans.protocol import Draw, SpanCapacity
from train.data.tokens import SpecialTokens


@dataclass(frozen=True, kw_only=True)
class ImageReader(MediaReader[ImageEncoderConfig, Picture]):
    """Reads pictures.

    Attributes:
        augment: how those that train are changed.
        prefix: how much of the text behind each is read with it.
        special: ids of the special tokens.
    """

    read_file = staticmethod(read_picture)
    pack_items = staticmethod(pack_pictures)
    vectors_of = staticmethod(vectors_of)
    augment: AugmentConfig | None = None
    prefix: PrefixConfig | None = None
    special: SpecialTokens = field(default_factory=SpecialTokens)

    def choose(self, sample: Sample, *, epoch: int, choice: int = 0) -> Spans:
        """All of them, with the text that is read with each."""
        if self.prefix is None:
            return super().choose(sample, epoch=epoch, choice=choice)
        mine, draw = list(self.items_of(sample)), Draw(epoch, choice)
        return spans_with_text(sample, mine, self.prefix, self.special, seed=self.seed, draw=draw)

    def arrays(self, items: Sequence[Picture], tokens: Ints, spans: FlatSpans) -> ImageSpans:
        """Pictures, and the text behind them."""
        return pack_pictures(
            items,
            spans,
            encoder=self.encoder,
            capacity=self.capacity,
            sequences=len(tokens),
            sequence_tokens=tokens.shape[1],
            tokens=tokens,
        )

    def largest_blank(self, slots: int) -> Picture | None:
        """A black picture, which text may follow up to so many slots."""
        if self.prefix is None:
            return super().largest_blank(slots)
        sizes = range(min(slots, self.encoder.longest_span), 0, -1)
        found = next((found for found in map(self.blank, sizes) if found is not None), None)
        if found is None:
            return None
        vectors = vectors_of(found, self.encoder)
        return found if slots - vectors <= self.prefix.max_tokens else None

    @property
    def changes(self) -> bool:
        """Whether the kind of spans says so."""
        return self.augment is not None

    def read(self, item: SampleItem, random: np.random.Generator | None = None) -> Picture:
        """The patches of one, which may be changed first."""
        return read_picture(
            item.data, self.encoder, size=item.size, augment=self.augment, random=random
        )

    def blank(self, vectors: int) -> Picture | None:
        """A black picture."""
        num_patches = vectors - self.encoder.class_rows + self.encoder.dropped_rows
        grid = self.encoder.fixed_grid or (num_patches, 1)
        if num_patches < 1 or grid[0] * grid[1] != num_patches:
            return None
        return black_picture(grid, self.encoder)


class ImageSpansConfig(MediaSpansConfig):
    """The pictures that documents have."""

    kind: Literal["image"]
    medium: ClassVar[Kind] = Kind.IMAGE
    encoder_kind: ClassVar[type[ItemEncoderKind]] = ImageEncoderConfig
    reader_kind: ClassVar = ImageReader
    augment: AugmentConfig | None = None
    """How they are changed each time that they train; default: not at all."""
    prefix: PrefixConfig | None = None
    """How much of the text behind each its encoder reads with it; default: none."""

    def reader(
        self, encoder: EncoderKind, *, capacity: SpanCapacity, seed: int, special: SpecialTokens
    ) -> ImageReader:
        """What makes patches of them."""
        found = super().reader(encoder, capacity=capacity, seed=seed, special=special)
        assert isinstance(found, ImageReader), "its kind"
        return replace(found, augment=self.augment, prefix=self.prefix, special=special)

    @property
    def prefix_tokens(self) -> int:
        """Of the longest."""
        return 0 if self.prefix is None else self.prefix.max_tokens

    def faults(
        self, path: str, encoder: EncoderKind, *, sequence_tokens: int, longest_slots: int
    ) -> Iterator[str]:
        """Besides, a prefix that nothing reads, and what would read one and is given none."""
        yield from super().faults(
            path, encoder, sequence_tokens=sequence_tokens, longest_slots=longest_slots
        )
        if not isinstance(encoder, ImageEncoderConfig):
            return
        key = f"{path.replace('spans.', 'model.encoders.', 1)}.encoder.text"
        if self.prefix is not None and encoder.text is None:
            yield f"{path}.prefix: the encoder reads no text: set {key}, or leave the prefix out"
        elif self.prefix is None and encoder.text is not None:
            yield f"{key}: no text is read behind pictures: set {path}.prefix, or leave it out"
        elif encoder.text is not None and self.prefix_tokens > encoder.text.max_tokens:
            yield (
                f"{path}.prefix.max_tokens: {self.prefix_tokens} exceeds {key}.max_tokens "
                f"({encoder.text.max_tokens}): lower it, or raise that"
            )
