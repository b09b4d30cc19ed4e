"""What goes wrong in a rank's numbers, or its pace, by what the environment says."""

import contextlib
import math
import os
import time
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from model.decoder import Decoder
from train import loop

SLOW: Final = "FAULT_SECONDS_A_STEP"
"""Seconds that each step takes longer."""
STRUCK: Final = "FAULT_STRUCK"
"""`RANK STEP`: what this rank computes in this step is not finite, once."""
STRIKING: Final = "FAULT_STRIKING"
"""A directory: the rank for which a file of its number lies there takes it away, and what it
computes next is not finite, once."""
BROKEN: Final = "FAULT_BROKEN"
"""`STEP`: what is computed in this step is not finite, as often as it is computed."""
SPIKING: Final = "FAULT_SPIKING"
"""`FIRST LAST`: from the one step to the other the model is too sure."""


def into(environment: Mapping[str, str]) -> None:
    """Make this rank's numbers wrong."""
    now, due = [0], [True]
    rank = environment.get("SLURM_PROCID", "0")
    seconds = float(environment.get(SLOW, "0"))
    struck = environment.get(STRUCK, "").split()
    striking = environment.get(STRIKING)
    broken = environment.get(BROKEN, "")
    first, last = (int(text) for text in environment.get(SPIKING, "0 0").split())
    reseed, run, leave = loop.reseed, Decoder.run, Decoder.leave

    def watched(seed: int, *, step: int, mesh: Any) -> None:
        now[0] = step
        time.sleep(seconds)
        reseed(seed, step=step, mesh=mesh)

    def spoiled(self: Decoder, *given: Any, **options: Any) -> Tensor:
        rows = run(self, *given, **options)
        if not self.training:
            return rows
        if str(now[0]) == broken:
            return rows * math.nan
        if struck == [rank, str(now[0])] and due[0]:
            due[0] = False
            return rows * math.nan
        if striking is not None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(striking, rank))
                return rows * math.nan
        return rows

    def sure(self: Decoder, rows: Tensor) -> Tensor:
        is_spike = self.training and first <= now[0] <= last
        return leave(self, rows) * (50.0 if is_spike else 1.0)

    loop.reseed, Decoder.run, Decoder.leave = watched, spoiled, sure
