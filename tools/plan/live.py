"""Live bytes of all tensors, to the byte and at their peak: what memory predictions are held to."""

import contextlib
import os
from collections.abc import Generator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

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
def metered() -> Generator[Meter]:
    """Follows every allocation on the CPU; the meter is filled when the context ends.

    The profiler records each allocation and each release, whoever asked (autograd, DeepSpeed's
    buffers, a kernel's own workspace). What the interpreter and its libraries hold is not torch's
    and not counted. Allocations are kept as events, so a context should span a few steps, not a
    run.
    """
    meter = Meter()
    profiler: Any = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _stderr_to_nowhere():  # the profiler of some versions announces itself there
        profiler.start()
    try:
        yield meter
    finally:
        with _stderr_to_nowhere():
            profiler.stop()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    running = [0, *accumulate(event.nbytes() for event in events)]  # releases are negative
    meter.peak_bytes, meter.live_bytes = max(running), running[-1]


@contextlib.contextmanager
def _stderr_to_nowhere() -> Generator[None]:
    kept = os.dup(STDERR)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
