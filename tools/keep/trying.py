"""A node's try-out, before ranks meet: what it can do, measured on it in seconds.

    srun --ntasks-per-node=1 python -m tools.keep.trying

Each node prints what it does alone, then, having met the others, what all-reduce in pairs does: two
lines of JSON, which `tools.keep.fitness` reads. Each node is in two pairs (where there are three
nodes or more), and counts the better one: so a slow one does not make its neighbours look slow.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist

SECONDS: Final = 90
"""After which a node's try-out ends, whatever hangs."""
_EACH_SECONDS: Final = 0.4
_LEAST_TIMES: Final = 3
_DISK_BYTES: Final = 32 * 2**20
_MEMORY_ELEMENTS: Final = 16 * 2**20
_PAIR_ELEMENTS: Final = 4 * 2**20

Pair = tuple[int, int]


def main() -> None:
    """Measure, print, meet, measure in pairs, print."""
    signal.alarm(SECONDS)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    rank, num_nodes = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    node = os.environ["SLURMD_NODENAME"]
    alone = {"matrix products": min(map(products, devices())), "memory": memory(), "disk": disk()}
    tell(node, alone)
    if num_nodes == 1:
        return
    is_cuda = torch.cuda.is_available()
    address = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        init_method=address,
        rank=rank,
        world_size=num_nodes,
        timeout=timedelta(seconds=SECONDS),
    )
    dist.barrier()
    clock = time.time()
    tell(node, {"all-reduce": all_reduce(rank, num_nodes, devices()[0])}, clock=clock)
    dist.barrier()
    dist.destroy_process_group()


def tell(node: str, rates: dict[str, float], *, clock: float | None = None) -> None:
    """Print a part of this node's report."""
    sys.stdout.write(json.dumps({"node": node, "rates": rates, "clock": clock}) + "\n")
    sys.stdout.flush()


def devices() -> list[torch.device]:
    """What this node computes on."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]


def quickest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of some turns."""
    found: list[float] = []
    until = time.perf_counter() + _EACH_SECONDS
    while len(found) <= _LEAST_TIMES or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])  # the first one makes what is made once


def products(device: torch.device) -> float:
    """Operations a second of matrix products."""
    is_cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if is_cuda else (768, torch.float32)
    left = torch.ones(size, size, device=device, dtype=dtype)
    out = torch.empty_like(left)
    return 2 * size**3 / quickest(lambda: torch.mm(left, left, out=out), device)


def memory() -> float:
    """Bytes a second of copies in the slowest of this node's memories."""

    def rate(device: torch.device) -> float:
        source = torch.ones(_MEMORY_ELEMENTS, device=device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / quickest(lambda: target.copy_(source), device)

    return min(map(rate, devices()))


def disk() -> float:
    """Bytes a second that reach the disk of temporary files."""
    data = os.urandom(_DISK_BYTES)

    def write() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return _DISK_BYTES / quickest(write, torch.device("cpu"))


def rounds(num_nodes: int) -> list[list[Pair]]:
    """Pairs of neighbours in a ring, in rounds in which no node is in two of them."""
    even = [(first, first + 1) for first in range(0, num_nodes - 1, 2)]
    odd = [(first, first + 1) for first in range(1, num_nodes - 1, 2)]
    if num_nodes < 3:
        return [even]
    closing: Pair = (num_nodes - 1, 0)
    return [even, [*odd, closing]] if num_nodes % 2 == 0 else [even, odd, [closing]]


def all_reduce(rank: int, num_nodes: int, device: torch.device) -> float:
    """Bytes a second of the better of this node's pairs; every node must call it."""
    values = torch.ones(_PAIR_ELEMENTS, device=device)
    found: list[float] = []
    for pairs in rounds(num_nodes):
        groups = {pair: dist.new_group(sorted(pair)) for pair in pairs}
        mine = next((group for pair, group in groups.items() if rank in pair), None)
        if mine is not None:
            times: list[float] = []
            for _ in range(_LEAST_TIMES + 1):  # as many on either side
                began = time.perf_counter()
                dist.all_reduce(values, group=mine)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - began)
            found.append(values.nbytes / min(times[1:]))
        dist.barrier()
    return max(found)


if __name__ == "__main__":
    main()
