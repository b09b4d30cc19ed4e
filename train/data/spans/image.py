"""Spans of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from model.encoders.image import ImageEncoderConfig, ImageSpans
from model.encoders.protocol import EncoderKind
from train.data.document import Kind
from train.data.sample import SampleItem
from train.data.spans.augment import AugmentConfig
from train.data.spans.media import MediaReader, MediaSpansConfig
from train.data.spans.picture import Picture, pack_pictures, read_picture
from train.data.spans.places import FlatSpans, Ints
from train.data.spans.protocol import SpanCapacity
from train.data.tokens import SpecialTokens


class ImageSpansConfig(MediaSpansConfig):
    """The pictures that documents have."""

    kind: Literal["image"]
    medium: ClassVar[Kind] = Kind.IMAGE
    encoder_kind: ClassVar[type[EncoderKind]] = ImageEncoderConfig
    augment: AugmentConfig | None = None
    """How they are changed each time that they train; default: not at all."""

    def reader(
        self, encoder: EncoderKind, *, capacity: SpanCapacity, seed: int, special: SpecialTokens
    ) -> "ImageReader":
        """What makes patches of them."""
        assert isinstance(encoder, ImageEncoderConfig), "refused with the configuration"
        return ImageReader(
            medium=self.medium, capacity=capacity, seed=seed, encoder=encoder, augment=self.augment
        )


@dataclass(frozen=True, kw_only=True)
class ImageReader(MediaReader[Picture]):
    """Reads pictures.

    Attributes:
        encoder: what is to read their patches.
        augment: how those that train are changed.
    """

    encoder: ImageEncoderConfig
    augment: AugmentConfig | None = None

    @property
    def changes(self) -> bool:
        """Whether the kind of spans says so."""
        return self.augment is not None

    def read_changed(self, item: SampleItem, random: np.random.Generator) -> Picture:
        """The patches of one that is changed first."""
        assert self.augment is not None, "else nothing is changed"
        return read_picture(
            item.data, self.encoder, size=item.size, augment=self.augment, random=random
        )

    def read(self, item: SampleItem) -> Picture:
        """The patches of one."""
        return read_picture(item.data, self.encoder, size=item.size)

    def blank(self, vectors: int) -> Picture | None:
        """A black picture."""
        num_patches = vectors - self.encoder.class_rows + self.encoder.dropped_rows
        grid = self.encoder.fixed_grid or (num_patches, 1)
        if num_patches < 1 or grid[0] * grid[1] != num_patches:
            return None
        black = np.zeros((num_patches, 3 * self.encoder.patch_pixels**2), dtype=np.uint8)
        return Picture(patches=black, grid=grid)

    def arrays(self, items: Sequence[Picture], tokens: Ints, spans: FlatSpans) -> ImageSpans:
        """The patches of all, picture after picture."""
        B, S = tokens.shape
        return pack_pictures(
            items,
            spans,
            encoder=self.encoder,
            capacity=self.capacity,
            sequences=B,
            sequence_tokens=S,
        )
