"""`precision: auto`, decided once: for all ranks, and for as long as a run goes on."""

import contextlib
import os
import socket
from functools import partial
from typing import Literal, NamedTuple

from parallel.agreement import gathered, on_first_rank
from parallel.launch import multiplies_bf16, processor_name
from train.checkpoint.directory import latest
from train.checkpoint.restore import read_state
from train.claim import stored_config
from train.config import RunConfig
from train.config_files import from_stored
from train.errors import UserError
from train.prepare import RunState

Precision = Literal["auto", "fp32", "bf16", "fp8", "fp8_with_head"]


def guessed(config: RunConfig) -> Precision:
    """As the run in this directory has it, else what suits this machine, before ranks have met."""
    with contextlib.suppress(UserError):  # said by whoever needs what is there
        if config.directory.config.exists():
            return stored_config(config.directory).precision
    return "bf16" if multiplies_bf16() else "fp32"


class Decided(NamedTuple):
    """What all ranks do."""

    precision: Precision
    remark: str | None
    """On machines that are not alike, if they are not."""
    is_as_guessed: bool
    """Whether all ranks had guessed it."""


def decided(config: RunConfig) -> Decided:
    """As the run has it, wherever it was, else bf16 if all ranks multiply it; every rank calls it.

    Args:
        config: with what this rank has guessed.

    Raises:
        UserError: what the run has left cannot be read.
    """
    kept = on_first_rank(partial(_kept, config), UserError)
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    ranks = gathered((multiplies_bf16(), f"{node} ({processor_name()})", config.precision))
    without = dict.fromkeys(name for multiplies, name, _ in ranks if not multiplies)
    suits_all: Precision = "fp32" if without else "bf16"
    found = kept or suits_all
    why = "as the run has it" if kept else "for all ranks alike"
    remark = (
        f"precision: {found}, {why}: processors are unlike, and bf16 is not multiplied in hardware "
        f"on {', '.join(without)}; set precision to choose yourself"
    )
    are_alike = len({multiplies for multiplies, *_ in ranks}) == 1
    is_as_guessed = all(guess == found for *_, guess in ranks)
    return Decided(found, None if are_alike else remark, is_as_guessed)


def _kept(config: RunConfig) -> Precision | None:
    directory = config.directory
    if directory.config.exists():
        return stored_config(directory).precision
    newest = latest(config.checkpoints_of(directory))
    if newest is None:
        return None
    return from_stored(RunConfig, read_state(newest, RunState).config, place=str(newest)).precision
