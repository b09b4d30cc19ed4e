"""Spans of video."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from model.encoders.protocol import ItemEncoderKind
from model.encoders.video import VideoEncoderConfig
from train.data.document import Kind
from train.data.spans.media import MediaReader, MediaSpansConfig
from train.data.spans.tubes import Clip, black_clip, pack_clips, read_clip, vectors_of


@dataclass(frozen=True, kw_only=True)
class VideoReader(MediaReader[VideoEncoderConfig, Clip]):
    """Reads videos."""

    read_file = staticmethod(read_clip)
    pack_items = staticmethod(pack_clips)
    vectors_of = staticmethod(vectors_of)

    def blank(self, vectors: int) -> Clip | None:
        """A black video."""
        places, left = divmod(vectors - self.encoder.kept_rows, self.encoder.times)
        grid = self.encoder.fixed_grid or (places, 1)
        if left or places < 1 or grid[0] * grid[1] != places:
            return None
        return black_clip(grid, self.encoder)


class VideoSpansConfig(MediaSpansConfig):
    """The videos that documents have."""

    kind: Literal["video"]
    medium: ClassVar[Kind] = Kind.VIDEO
    encoder_kind: ClassVar[type[ItemEncoderKind]] = VideoEncoderConfig
    reader_kind: ClassVar = VideoReader
