"""The line in each union that lists the kinds, written as fields that say more than their own."""

from typing import Annotated

from pydantic import Field

from model import semicausal
from model.encoders.text import TextEncoderConfig
from tests.distributed.modality.encoder import PatchEncoderConfig
from tests.distributed.modality.spans import PatchSpansConfig
from train import config
from train.data.spans.at_random import RandomSpansConfig


class EncoderConfig(semicausal.EncoderConfig):
    encoder: Annotated[  # pyright: ignore[reportIncompatibleVariableOverride]  # the line
        TextEncoderConfig | PatchEncoderConfig, Field(discriminator="kind")
    ]


class ModelConfig(semicausal.ModelConfig):
    encoders: dict[str, EncoderConfig]  # pyright: ignore[reportIncompatibleVariableOverride]  # as above


class RunConfig(config.RunConfig):
    model: ModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # as above
    spans: dict[  # pyright: ignore[reportIncompatibleVariableOverride]  # the other line
        str, Annotated[RandomSpansConfig | PatchSpansConfig, Field(discriminator="kind")]
    ] = Field(default_factory=dict)
