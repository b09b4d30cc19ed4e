"""Seconds of a profile by part and kind."""

from types import SimpleNamespace
from typing import Any

from parallel.named import PREFIX
from train.watch.profiling import OTHER, seconds_by_part


def event(name: str, *, parent: Any = None, device: str = "CPU", us: int) -> Any:
    return SimpleNamespace(
        name=name,
        cpu_parent=parent,
        device_type=SimpleNamespace(name=device),
        self_device_time_total=us,
        self_cpu_time_total=1,
    )


def test_a_kernel_counts_once_with_the_operation_that_has_launched_it() -> None:
    """Torch lists it besides, with no operation above it."""
    part = event(f"{PREFIX} decoder", us=0)
    events = [
        part,
        event("aten::mm", parent=part, us=2_000_000),
        event("sm90_gemm", device="CUDA", us=2_000_000),
        event("aten::add", us=500_000),
    ]
    [decoder] = [part for part in seconds_by_part(events, on_device=True) if part != OTHER]
    assert seconds_by_part(events, on_device=True) == {
        decoder: {"matrix products": 2.0},
        OTHER: {OTHER: 0.5},
    }
