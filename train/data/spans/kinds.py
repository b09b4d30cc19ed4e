"""The kinds of spans there are: a modality adds its line here and in `model.encoders.kinds`."""

from typing import Annotated

from pydantic import Field

from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.given import FixedSpansConfig, StoredSpansConfig
from train.data.spans.image import ImageSpansConfig
from train.data.spans.rules import RuleSpansConfig

SpansConfig = Annotated[
    RandomSpansConfig | RuleSpansConfig | FixedSpansConfig | StoredSpansConfig | ImageSpansConfig,
    Field(discriminator="kind"),
]
