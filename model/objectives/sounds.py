"""Masked sounds: rows behind the front that the blocks of an audio encoder do not see."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.batch import PackedSpans
from model.config import Width
from model.encoders.audio import AudioEncoderConfig, AudioSpans
from model.encoders.protocol import EncoderKind
from model.layers import Layers, normal
from model.objectives.protocol import ObjectiveKind

TEMPERATURE = 0.1
"""That similarities are divided by, in wav2vec 2.0 and HuBERT alike."""


class SoundObjectiveKind(ObjectiveKind):
    """Which rows of a sound are masked, and the width in which vectors are compared."""

    starts: Annotated[float, Field(gt=0, lt=1)] = 0.065
    """Of a sound's rows at which a mask starts; masks may overlap. One at least."""
    mask_rows: Annotated[int, Field(ge=1, le=2**10)] = 10
    """Of a mask, 20 ms each; half of a sound at most, where it is that short."""
    width: Width = 64
    """Of what is compared: the encoder's vector, and what was masked."""
    reads: ClassVar[tuple[type[EncoderKind], ...]] = (AudioEncoderConfig,)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedSounds(PackedSpans):
    """Sounds of which some rows are masked.

    Attributes:
        whole: as they are.
        masked: [C] vectors that are masked, and scored, in rising order.
    """

    whole: AudioSpans
    masked: Int64[Tensor, "C"]

    @property
    def rows(self) -> Int64[Tensor, "C"]:
        """Rows of the masked vectors."""
        return self.whole.vectors.index_select(0, self.masked)


class Masker(nn.Module):
    """Reads sounds with a learned row in place of those that are masked."""

    def __init__(self, config: AudioEncoderConfig, width: int, layers: Layers):
        super().__init__()
        self.mask_embedding: Any = layers.table(1, config.width, init=normal(0.02))
        self.narrowing: Any = layers.linear(config.width, width, init=normal(0.02))

    def forward(
        self, encoder: Any, rows: Float[Tensor, "R E"], spans: MaskedSounds
    ) -> Float[Tensor, "C D"]:
        """What the encoder makes of the masked rows, at the width of what is compared.

        Args:
            encoder: which trains.
            rows: what its front has made of the sounds.
            spans: the sounds.
        """
        mask = self.mask_embedding(spans.masked.new_zeros(1)).to(rows.dtype)
        hidden = rows.index_copy(0, spans.rows, mask.expand(len(spans.masked), -1))
        vectors = encoder.mixed(hidden, spans.whole).index_select(0, spans.masked)
        return self.narrowing(vectors)
