"""The objectives that there are: one adds its line here and in `train.data.masks.kinds`."""

from typing import Annotated

from pydantic import Field

from model.objectives.contrast import ContrastConfig
from model.objectives.patches import MaskedPatchesConfig
from model.objectives.tokens import ReplacedTokensConfig
from model.objectives.units import MaskedUnitsConfig

ObjectiveConfig = Annotated[
    MaskedPatchesConfig | ReplacedTokensConfig | ContrastConfig | MaskedUnitsConfig,
    Field(discriminator="kind"),
]
