"""Spans of sound."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from model.encoders.audio import AudioEncoderConfig, AudioSpans
from model.encoders.protocol import EncoderKind
from train.data.document import Kind
from train.data.sample import SampleItem
from train.data.spans.hearing import Sound, in_blocks, pack_sounds, read_sound
from train.data.spans.media import MediaReader, MediaSpansConfig
from train.data.spans.places import FlatSpans, Ints
from train.data.spans.protocol import SpanCapacity
from train.data.tokens import SpecialTokens


class AudioSpansConfig(MediaSpansConfig):
    """The sounds that documents have."""

    kind: Literal["audio"]
    medium: ClassVar[Kind] = Kind.AUDIO
    encoder_kind: ClassVar[type[EncoderKind]] = AudioEncoderConfig

    def reader(
        self, encoder: EncoderKind, *, capacity: SpanCapacity, seed: int, special: SpecialTokens
    ) -> "AudioReader":
        """What makes blocks of them."""
        assert isinstance(encoder, AudioEncoderConfig), "refused with the configuration"
        return AudioReader(medium=self.medium, capacity=capacity, encoder=encoder)


@dataclass(frozen=True, kw_only=True)
class AudioReader(MediaReader[Sound]):
    """Reads sounds.

    Attributes:
        encoder: what is to read their blocks.
    """

    encoder: AudioEncoderConfig

    def read(self, item: SampleItem) -> Sound:
        """The blocks of one."""
        return read_sound(item.data, self.encoder, size=item.size)

    def blank(self, vectors: int) -> Sound | None:
        """Silence."""
        samples = self.encoder.front.fewest_samples(vectors)
        return in_blocks(np.zeros(samples, dtype=np.float32), self.encoder)

    def arrays(self, items: Sequence[Sound], tokens: Ints, spans: FlatSpans) -> AudioSpans:
        """The blocks of all, sound after sound."""
        B, S = tokens.shape
        return pack_sounds(
            items,
            spans,
            encoder=self.encoder,
            capacity=self.capacity,
            sequences=B,
            sequence_tokens=S,
        )
