"""Joins the process group, whoever started this process."""

import os
import platform
import re
import resource
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.distributed as dist

from parallel.launcher import announced, meet

MEETING_SECONDS = 300.0
"""How long ranks wait for each other to start."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all.

    Attributes:
        rank: global rank.
        size: number of ranks.
        device: where this rank computes.
        timeout_seconds: how long a collective may wait for the slowest rank.
    """

    rank: int
    size: int
    device: torch.device
    timeout_seconds: float = 600.0

    @classmethod
    def here(cls, device: torch.device | None = None) -> Self:
        """This process in the group that it has joined; alone without one."""
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return cls(rank=rank, size=size, device=device or own_device())

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0


def join(*, timeout_seconds: float) -> World:
    """Join the process group; every rank must call it.

    Args:
        timeout_seconds: how long a collective may wait for the slowest rank.

    Raises:
        LaunchError: what the launcher says makes no sense, or not all ranks came.
    """
    launched = announced()
    device, backend = own_device(), "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=timeout_seconds)
    if launched.size == 1:
        # DeepSpeed reads the address even where nobody has to be met.
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        alone = "tcp://127.0.0.1:0"  # port 0: whichever is free
        dist.init_process_group(backend, init_method=alone, rank=0, world_size=1, timeout=timeout)
    else:
        store = meet(launched, timeout_seconds=min(timeout_seconds, MEETING_SECONDS))
        store.set_timeout(timeout)
        dist.init_process_group(
            backend, store=store, rank=launched.rank, world_size=launched.size, timeout=timeout
        )
    return World(
        rank=launched.rank, size=launched.size, device=device, timeout_seconds=timeout_seconds
    )


def own_device() -> torch.device:
    """Where this rank computes: on its GPU if there are any."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def leave() -> None:
    """Leave together: a rank that exits while others still talk makes them abort."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def total(*values: float) -> list[float]:
    """Sums of host numbers over all ranks, exact in fp64; every rank must call it.

    They travel between hosts: whatever devices compute, nobody waits for it.
    """
    numbers = np.array(values, dtype=np.float64)
    if dist.is_initialized():
        dist.all_reduce(torch.from_numpy(numbers))
    return numbers.tolist()


def multiplies_bf16() -> bool:
    """Whether this machine multiplies bf16 in hardware; without, it is slower than fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(flag in _cpuinfo() for flag in ("avx512_bf16", "amx_bf16"))


def processor_name() -> str:
    """The processor of this host, in its maker's words."""
    found = re.search(r"^model name\s*:(.*)", _cpuinfo(), flags=re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cpuinfo() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""


def peak_memory_bytes() -> int:
    """Most memory this rank has held: on its GPU if it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
