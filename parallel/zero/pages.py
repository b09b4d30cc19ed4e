"""Memory handed back to the kernel, for models that fill a machine.

Masters and moments can live in mapped files: the optimiser and checkpoints see ordinary tensors,
whose pages leave the process after each update; the kernel writes them out and drops them when it
wants the memory. DeepSpeed's own offloading to disk was left aside: it needs libaio's headers, a
compiler at run time and, unless forced, an AdamW of its own, and while the state is away it is
hidden from checkpoints.
"""

import ctypes
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

MOMENTS: Final = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square, under torch's names."""

MMAP_THRESHOLD = -3
"""glibc's number of the option: what is at least as large is mapped by itself."""
LARGE_BYTES = 1 << 20


_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
"""Those that some tensor still lies in."""


def mapped_zeros(directory: Path, *, num_elements: int, dtype: torch.dtype) -> Tensor:
    """A flat tensor in a file of its own, which has no name and goes with the tensor.

    Raises:
        OSError: the directory cannot be written, or there is no room.
    """
    num_bytes = num_elements * dtype.itemsize
    with tempfile.TemporaryFile(dir=directory) as file:
        # Claimed now: where a mapped file finds no room later, the process is killed.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        pages = mmap.mmap(file.fileno(), num_bytes)
    _maps.add(pages)
    return torch.frombuffer(pages, dtype=dtype)


def release_files() -> None:
    """Lets go of the pages of all mapped tensors; what was written to them stays."""
    for pages in _maps:
        pages.madvise(mmap.MADV_DONTNEED)


@torch.no_grad()
def move_to_files(
    optimizer: torch.optim.Optimizer, masters: Iterable[Tensor], directory: Path
) -> None:
    """Puts an AdamW's weights and moments into files, of which memory holds what is in use.

    Args:
        optimizer: steps on a few of the masters at a time.
        masters: flat tensors on the CPU that have had no step; they keep their values.
        directory: on a local disk; made if need be.

    Raises:
        OSError: the directory cannot be written, or there is no room.
    """
    directory.mkdir(parents=True, exist_ok=True)

    def mapped(like: Tensor) -> Tensor:
        return mapped_zeros(directory, num_elements=like.numel(), dtype=like.dtype)

    for master in masters:
        values = mapped(master).copy_(master)
        master.data = values
        # As torch's AdamW would begin.
        step = torch.zeros((), dtype=torch.float32)
        optimizer.state[master] = {"step": step} | {key: mapped(master) for key in MOMENTS}
        release_files()
    optimizer.register_step_post_hook(lambda *_: release_files())


def zero_without_pages(tensor: Tensor) -> None:
    """Zeroes a contiguous tensor on the CPU; it takes memory again only where it is written."""
    address, num_bytes = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    before = min(-address % mmap.PAGESIZE, num_bytes)
    inside = (num_bytes - before) // mmap.PAGESIZE * mmap.PAGESIZE
    everything = tensor.view(-1).view(torch.uint8)
    everything[:before].zero_()
    everything[before + inside :].zero_()
    if inside and not _advise(address + before, inside):
        everything[before : before + inside].zero_()


def keep_no_freed_memory() -> None:
    """Makes the C library give back what is freed, at once if large, for the rest of the process.

    Casting and sharding a model leave holes in the heap, and so does every step: tensors below
    32 MB are kept for later by default, gigabytes of them behind a large model.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # it is glibc
            library.mallopt(MMAP_THRESHOLD, LARGE_BYTES)
            library.malloc_trim(0)


def _advise(address: int, num_bytes: int) -> bool:
    """Whether the kernel replaced these private pages with zeros that take no memory."""
    if sys.platform != "linux":  # elsewhere the same advice leaves the values as they are
        return False
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise(address, num_bytes, mmap.MADV_DONTNEED) == 0
