"""Master weights of ZeRO-3: kept in the parameters themselves, in memory or in files."""

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.agreement import on_all_ranks
from parallel.zero import pages


@contextmanager
def placed(optimizer: torch.optim.Optimizer, directory: Path | None) -> Generator[None]:
    """Within the context, a ZeRO-3 that is built puts its masters where they belong.

    It happens before DeepSpeed makes room for gradients: both at once would be the most memory
    that a run takes. Where the files of one rank fail, all ranks end: the others would wait for it
    in the middle of DeepSpeed.

    Args:
        optimizer: torch's AdamW, which DeepSpeed drives.
        directory: holds masters and moments in files; None for memory.

    Raises:
        OSError: some rank cannot write its files; raised on every rank, with the reason alone.
    """
    module = importlib.import_module("deepspeed.runtime.zero.stage3")
    kind: Any = module.DeepSpeedZeroOptimizer_Stage3
    original = kind.initialize_optimizer_states

    def place_and_initialize(zero_optimizer: Any) -> None:
        masters = _share_equal(zero_optimizer)
        if directory is not None:
            on_all_ranks(partial(_move_to_files, optimizer, masters, directory), OSError)
        original(zero_optimizer)

    kind.initialize_optimizer_states = place_and_initialize
    try:
        yield
    finally:
        kind.initialize_optimizer_states = original


def _move_to_files(
    optimizer: torch.optim.Optimizer, masters: list[Tensor], directory: Path
) -> None:
    try:
        pages.move_to_files(optimizer, masters, directory)
    except OSError as error:
        raise OSError(error.strerror or str(error)) from error


def _share_equal(zero_optimizer: Any) -> list[Tensor]:
    """The masters; those of the parameters' own type become the parameters themselves.

    DeepSpeed means to do so and compares a device with its name, which always differ.
    """
    masters: list[Tensor] = zero_optimizer.fp32_partitioned_groups_flat
    for master, values in zip(masters, zero_optimizer.fp16_partitioned_groups_flat, strict=True):
        if master.dtype == values.dtype:
            master.data = values
    return masters
