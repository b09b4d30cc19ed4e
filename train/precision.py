"""`precision: auto`, decided once: for all ranks, and for as long as a run goes on."""

import contextlib
from functools import partial
from typing import NamedTuple

from parallel.agreement import gathered, on_first_rank
from parallel.host import node_name
from parallel.launch import multiplies_bf16, processor_name
from train.checkpoint.directory import latest
from train.claim import stored_config
from train.config import Precision, RunConfig
from train.errors import UserError
from train.loading import load_config


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
    ranks = gathered((multiplies_bf16(), f"{node_name()} ({processor_name()})", config.precision))
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
    return load_config(newest).precision
