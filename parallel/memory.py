"""Memory of this rank's device, as far as a run that has to fit asks about it."""

from collections.abc import Callable
from typing import Protocol

import torch

USABLE_SHARE = 0.96
"""Of what is free, what tensors can fill: the rest goes to gaps between them, and to NCCL."""


class DeviceMemory(Protocol):
    """What is asked of a device."""

    def usable_bytes(self) -> float:
        """What this process can hold in tensors, those that it holds already included."""
        ...

    def peak_of(self, work: Callable[[], object]) -> float:
        """Most bytes that were held at a time while `work` ran."""
        ...


class CudaMemory:
    """The GPU of this process."""

    def usable_bytes(self) -> float:
        """What is free or reserved by this process; what others hold there is not."""
        free, _ = torch.cuda.mem_get_info()
        return USABLE_SHARE * (free + torch.cuda.memory_reserved())

    def peak_of(self, work: Callable[[], object]) -> float:
        """Most bytes in tensors at a time while `work` ran."""
        torch.cuda.reset_peak_memory_stats()
        work()
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


def device_memory() -> DeviceMemory | None:
    """This rank's device, None where memory is the host's, which is not asked."""
    return CudaMemory() if torch.cuda.is_available() else None
