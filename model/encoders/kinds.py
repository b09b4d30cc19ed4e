"""The encoders that there are: a modality adds its line here and in `train.data.spans.kinds`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from model.encoders.audio import AudioEncoderConfig
from model.encoders.image import ImageEncoderConfig
from model.encoders.text import TextEncoderConfig
from model.encoders.video import VideoEncoderConfig


def _text_by_default(value: Any) -> Any:
    """Files may leave out `kind`, as all did while there was no other."""
    return {"kind": "text"} | value if isinstance(value, dict) else value


AnyEncoderConfig = Annotated[
    TextEncoderConfig | ImageEncoderConfig | AudioEncoderConfig | VideoEncoderConfig,
    Field(discriminator="kind"),
    BeforeValidator(_text_by_default),
]
