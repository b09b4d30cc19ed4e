"""Spans of sound."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from model.encoders.audio import AudioEncoderConfig
from model.encoders.protocol import ItemEncoderKind
from train.data.document import Kind
from train.data.spans.hearing import Sound, in_blocks, pack_sounds, read_sound, vectors_of
from train.data.spans.media import MediaReader, MediaSpansConfig


@dataclass(frozen=True, kw_only=True)
class AudioReader(MediaReader[AudioEncoderConfig, Sound]):
    """Reads sounds."""

    read_file = staticmethod(read_sound)
    pack_items = staticmethod(pack_sounds)
    vectors_of = staticmethod(vectors_of)

    def blank(self, vectors: int) -> Sound | None:
        """Silence."""
        samples = self.encoder.front.fewest_samples(vectors)
        return in_blocks(np.zeros(samples, dtype=np.float32), self.encoder)


class AudioSpansConfig(MediaSpansConfig):
    """The sounds that documents have."""

    kind: Literal["audio"]
    medium: ClassVar[Kind] = Kind.AUDIO
    encoder_kind: ClassVar[type[ItemEncoderKind]] = AudioEncoderConfig
    reader_kind: ClassVar = AudioReader
