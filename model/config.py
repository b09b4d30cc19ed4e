"""The base of every configuration class."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen, strict, and closed: a key that no field names is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
