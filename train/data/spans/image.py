"""Spans of pictures."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from model.encoders.image import ImageEncoderConfig
from model.encoders.protocol import EncoderKind, ItemEncoderKind
from train.data.document import Kind
from train.data.sample import SampleItem
from train.data.spans.augment import AugmentConfig
from train.data.spans.media import MediaReader, MediaSpansConfig
from train.data.spans.picture import Picture, black_picture, pack_pictures, read_picture, vectors_of
from train.data.spans.protocol import SpanCapacity
from train.data.tokens import SpecialTokens


@dataclass(frozen=True, kw_only=True)
class ImageReader(MediaReader[ImageEncoderConfig, Picture]):
    """Reads pictures.

    Attributes:
        augment: how those that train are changed.
    """

    read_file = staticmethod(read_picture)
    pack_items = staticmethod(pack_pictures)
    vectors_of = staticmethod(vectors_of)
    augment: AugmentConfig | None = None

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

    def reader(
        self, encoder: EncoderKind, *, capacity: SpanCapacity, seed: int, special: SpecialTokens
    ) -> ImageReader:
        """What makes patches of them."""
        found = super().reader(encoder, capacity=capacity, seed=seed, special=special)
        assert isinstance(found, ImageReader), "its kind"
        return replace(found, augment=self.augment)
