"""Whether a run is at W&B, and under which id: what configuration, checkpoint and variables say."""

import os
import secrets
from typing import Final, Literal

from train.watch.config import WatchConfig

Mode = Literal["disabled", "offline", "online"]

_SWITCHES: Final = ("WANDB_DISABLED", "WANDB_MODE")
_MODES: Final[dict[str, Mode]] = {
    **{"disabled": "disabled", "offline": "offline", "dryrun": "offline"},
    **{"online": "online", "run": "online"},
}
_OPENNESS: Final = ("disabled", "offline", "online")
"""What less leaves this host comes first."""


def mode_of(watch: WatchConfig) -> tuple[Mode, str | None]:
    """Whether and where W&B writes, and what to say if its own switches say another thing.

    `WANDB_MODE` and `WANDB_DISABLED` hold where `watch.wandb` is not set. Where both are, the one
    that sends less is obeyed.
    """
    mode: Mode
    switches = {name: os.environ.get(name, "").strip().lower() for name in _SWITCHES}
    if switches["WANDB_DISABLED"] in ("1", "true", "t", "yes", "y", "on"):
        switch, mode = "WANDB_DISABLED", "disabled"
    elif switches["WANDB_MODE"] in _MODES:
        switch, mode = "WANDB_MODE", _MODES[switches["WANDB_MODE"]]
    elif switches["WANDB_MODE"]:
        return watch.wandb, (
            f"WANDB_MODE={switches['WANDB_MODE'][:40]} is none of {', '.join(_MODES)}: W&B is "
            f"{watch.wandb}, as watch.wandb says"
        )
    else:
        return watch.wandb, None
    if "wandb" not in watch.model_fields_set:
        return mode, None
    chosen: Mode = mode if _OPENNESS.index(mode) < _OPENNESS.index(watch.wandb) else watch.wandb
    if mode == watch.wandb:
        return chosen, None
    said = f"{switch}={os.environ[switch]}"
    return chosen, f"W&B is {chosen}: {said}, and watch.wandb is {watch.wandb}; the lesser holds"


def run_id_of(saved: str | None) -> str:
    """The id of a W&B run: what a checkpoint has kept, or a fresh one; ours, so that it can travel.

    `WANDB_RUN_ID` names a new run; with `WANDB_RESUME=never` each start of a run is a new one.
    """
    if saved is not None and not each_start_is_a_run():
        return saved
    return os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)


def each_start_is_a_run() -> bool:
    """Whether W&B is not to be told of what earlier starts did."""
    return os.environ.get("WANDB_RESUME") == "never"
