"""Spans of patches: where a sample holds a picture, and its bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from model.config import Config
from model.encoders.protocol import EncoderKind, SpanLoad
from tests.distributed.modality.encoder import PatchEncoderConfig, PatchSpans
from train.data.document import Kind
from train.data.sample import Sample
from train.data.spans.places import NO_SPANS, FlatSpans, Ints, Spans, padded, runs
from train.data.spans.protocol import Draw, SpanCapacity
from train.data.tokens import SpecialTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Illustrated(Sample):
    """A sample with a picture in some of its slots.

    Attributes:
        at: slot of its first patch.
        picture: [patches, P]; None where there is no picture.
    """

    at: int = 0
    picture: npt.NDArray[np.uint8] | None = None


class PatchSpansConfig(Config):
    """The pictures that samples bring."""

    kind: Literal["patches"]
    patches: int
    """Most patches of a picture."""
    is_idle: bool = False
    is_stored: bool = False
    medium: ClassVar[Kind] = Kind.IMAGE
    prefix_tokens: ClassVar[int] = 0

    def room(self, sequence_tokens: int) -> tuple[int, int]:
        return self.patches, 1

    def load(self, sequence_tokens: int) -> SpanLoad:
        return SpanLoad(vectors=self.patches, spans=1, longest=self.patches)

    def reader(
        self, encoder: EncoderKind, *, capacity: SpanCapacity, seed: int, special: SpecialTokens
    ) -> "PatchReader":
        assert isinstance(encoder, PatchEncoderConfig)
        return PatchReader(capacity, encoder.patch_bytes)

    def faults(
        self, path: str, encoder: EncoderKind, *, sequence_tokens: int, longest_slots: int
    ) -> Iterator[str]:
        if not isinstance(encoder, PatchEncoderConfig):
            yield f"{path}.kind: patches, but the encoder is of kind {encoder.kind}"


@dataclass(frozen=True)
class PatchReader:
    """Reads a sample's picture.

    Attributes:
        capacity: room in one sequence.
        patch_bytes: P.
    """

    capacity: SpanCapacity
    patch_bytes: int

    def choose(self, sample: Sample, *, epoch: int, choice: int = 0) -> Spans:
        assert isinstance(sample, Illustrated)
        if sample.picture is None:
            return NO_SPANS
        return np.array([[sample.at, sample.at + len(sample.picture)]])

    def pack(
        self,
        samples: Sequence[Sample],
        tokens: Ints,
        spans: FlatSpans,
        *,
        draws: Sequence[Draw] | None = None,
    ) -> PatchSpans:
        B, S = tokens.shape
        room = B * self.capacity.tokens
        patches = np.zeros((room, self.patch_bytes), dtype=np.float32)
        slots, lengths = runs(spans.first_slots(S), spans.lengths), spans.lengths
        if not len(spans):
            slots, lengths = np.array([B * S]), np.array([1])  # one patch, into the bin
        else:
            pictures = [s.picture for s in samples if isinstance(s, Illustrated)]
            patches[: len(slots)] = np.concatenate([p for p in pictures if p is not None]) / 255
        longest = int(lengths.max())
        return PatchSpans(
            slots=padded(slots, room, B * S),
            num_vectors=len(slots),
            patches=torch.from_numpy(patches),
            cells=padded(runs(np.arange(len(lengths)) * longest, lengths), room),
            num_spans=len(lengths),
            longest_rows=longest,
        )
