"""What a rank computes itself of a step: its time without what it waits for other ranks.

On CPUs alone: there a collective is waited for where it is called, by `Work.wait`. On GPUs the
host hardly waits, and the device does it inside the collective's own kernel.
"""

import contextlib
import time
from collections.abc import Generator
from typing import Any

import torch
import torch.distributed as dist

from train.watch.heartbeat import Heartbeat


class Waits:
    """Seconds that this process has waited in collectives so far."""

    def __init__(self) -> None:
        self.seconds = 0.0


@contextlib.contextmanager
def counted_waits() -> Generator[Waits]:
    """Counts what collectives are waited for, in all that torch.distributed calls meanwhile."""
    waits, wait = Waits(), dist.Work.wait

    def counted(work: dist.Work, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return wait(work, *arguments, **named)
        finally:
            waits.seconds += time.perf_counter() - began

    dist.Work.wait = counted  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield waits
    finally:
        dist.Work.wait = wait


def tell_own_time(
    beat: Heartbeat, device: torch.device, held: contextlib.ExitStack, *, stage: int
) -> None:
    """Have a heartbeat tell a rank's own time of each step from now on.

    Args:
        beat: of this rank.
        device: where it computes.
        held: ends it.
        stage: of the pipeline: ranks of other stages have other work.
    """
    if beat.is_heard and device.type == "cpu":
        waits = held.enter_context(counted_waits())
        beat.count_own_time(lambda: waits.seconds, stage=stage)
