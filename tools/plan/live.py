"""Live bytes of all tensors, to the byte and at their peak: what memory predictions are held to."""

import contextlib
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STDERR = 2


@dataclass
class Meter:
    """What tensors took while the meter ran.

    Attributes:
        peak_bytes: most that was live at a time, of what was allocated under the meter.
        live_bytes: what was still live at its end.
    """

    peak_bytes: int = 0
    live_bytes: int = 0


@contextlib.contextmanager
def metered(device: torch.device) -> Generator[Meter]:
    """Follows every allocation of torch's allocator; the meter is filled when the context ends.

    On CPU the profiler records each allocation and each release, whoever asked (autograd,
    DeepSpeed's buffers, a kernel's own workspace); on CUDA the caching allocator counts. What the
    interpreter and its libraries hold is not torch's and not counted. Allocations are kept as
    events, so a context should span a few steps, not a run.

    Args:
        device: where the tensors are.
    """
    meter = Meter()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield meter
        meter.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        meter.live_bytes = torch.cuda.memory_allocated(device) - before
        return
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _stderr_to_nowhere():  # the profiler of some versions announces itself there
        profiler.start()
    try:
        yield meter
    finally:
        with _stderr_to_nowhere():
            profiler.stop()
    running = list(accumulate(_changes(profiler)))
    meter.peak_bytes = max(running, default=0)
    meter.live_bytes = running[-1] if running else 0


def _changes(profiler: Any) -> Iterable[int]:
    """Bytes allocated (positive) and released (negative), in order of time."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return (e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))


@contextlib.contextmanager
def _stderr_to_nowhere() -> Generator[None]:
    kept, nowhere = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)
