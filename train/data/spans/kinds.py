"""The kinds of spans there are: a modality adds its line here and in `model.encoders.kinds`."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from train.data.document import Kind
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.audio import AudioSpansConfig
from train.data.spans.given import FixedSpansConfig, StoredSpansConfig
from train.data.spans.image import ImageSpansConfig
from train.data.spans.media import MediaSpansConfig
from train.data.spans.rules import RuleSpansConfig
from train.data.spans.video import VideoSpansConfig

SpansConfig = Annotated[
    RandomSpansConfig
    | RuleSpansConfig
    | FixedSpansConfig
    | StoredSpansConfig
    | ImageSpansConfig
    | AudioSpansConfig
    | VideoSpansConfig,
    Field(discriminator="kind"),
]

MEDIA_SPANS: Final[Mapping[Kind, MediaSpansConfig]] = {
    Kind.IMAGE: ImageSpansConfig(kind="image"),
    Kind.AUDIO: AudioSpansConfig(kind="audio"),
    Kind.VIDEO: VideoSpansConfig(kind="video"),
}
"""What reads items outside of a corpus, by modality."""
