"""The base of every configuration class."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Bounds are far beyond what anybody trains, and below what breaks: index types, tables of a run.
MOST_TOKENS = 2**24
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
"""Of a sequence, or what lies in one."""
Width = Annotated[int, Field(ge=8, le=2**17)]
HiddenWidth = Annotated[int, Field(ge=8, le=2**20)]
Vocabulary = Annotated[int, Field(ge=8, le=2**24)]
Depth = Annotated[int, Field(ge=1, le=2**12)]
Heads = Annotated[int, Field(ge=1, le=2**12)]
Dropout = Annotated[float, Field(ge=0, le=0.99)]

Compile = Literal["auto", "none", "blocks"]
"""What is compiled: nothing, the blocks, or these where it pays and can be done."""

MOST_PATH_BYTES = 4095
MOST_NAME_BYTES = 255


def _can_be_a_path(text: str) -> str:
    content = text.encode()
    is_short = len(content) <= MOST_PATH_BYTES and all(
        len(name) <= MOST_NAME_BYTES for name in content.split(b"/")
    )
    if not text.strip() or min(content) < ord(" ") or not is_short:
        raise ValueError("cannot be the name of a file or directory: name another")
    return text


PathText = Annotated[str, AfterValidator(_can_be_a_path)]
"""A path, or the address of a store, as the user wrote it: `~` and `$VARIABLE` in it are stored as
they are, and stand on each host, at each start, for what `train.storage.path` says."""


class Config(BaseModel):
    """Frozen, strict, and closed: a key that no field names is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
