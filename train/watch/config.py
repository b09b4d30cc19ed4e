"""Configuration of how a run is watched."""

from typing import Annotated, Final, Literal

from pydantic import Field

from model.config import Config

MOST_STEPS: Final = 16
"""That are profiled; each may leave hundreds of megabytes."""


class WatchConfig(Config):
    """How a run is watched. `metrics.jsonl` and the report are always written."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases: files under RUN/wandb, live upload (falls back to files when the server is
    unreachable), or nothing. `python -m tools.wandb_sync RUN` uploads what is not there yet, as
    one run however often it was started. `WANDB_MODE` and `WANDB_DISABLED` hold where this is not
    set; where it is, the one that sends less."""
    wandb_project: str = Field(default="semicausal", min_length=1)
    """W&B project."""
    wandb_entity: str | None = None
    """W&B user or team; null for the account's default."""
    log_every_steps: int = Field(default=10, ge=1, le=10**9)
    """Steps between two plain progress lines; a line also comes every 10 seconds."""
    norms_every_steps: int = Field(default=20, ge=1, le=10**9)
    """Steps between two records of the gradient norm of each block."""
    progress: bool | None = None
    """A live progress bar (true), plain lines (false), or whichever suits the output (null)."""


class ProfileConfig(Config):
    """Steps whose time is looked at closely. They take longer than others."""

    steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=MOST_STEPS)
    """Numbers of steps. Each leaves a trace and a table in RUN/profile of every rank that holds a
    part of the first copy of the model; `python -m tools.trace RUN` shows them."""
