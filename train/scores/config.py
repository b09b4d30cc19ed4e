"""What of tasks is asked while a model trains."""

from typing import Annotated, Literal

from pydantic import Field

from model.config import Config


class EvaluationConfig(Config):
    """Tasks that the model is asked in training, as it stands then."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """By name, by file, by folder of `configs/task`, or `all` (`train/tasks/task.py`)."""
    every_steps: Annotated[int, Field(ge=1, le=10**12)] = 500
    """Before the first step and after the last they are asked as well."""
    rows: Annotated[int, Field(ge=1, le=2**20)] = 64
    """The first this many of each task."""
    split: Literal["train", "validation", "test"] = "validation"
    batch: Annotated[int, Field(ge=1, le=2**16)] = 16
    """Contexts that are read at once."""
