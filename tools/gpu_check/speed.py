"""Rates of a device and rows of speed, each computed in a process of its own."""

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Final

import torch
import torch.distributed as dist

from parallel.launch import World, join, processor_name
from tools.bench.gpu import METALM, REPEATABLE, Subject, copy_bytes, matmul_flops, peak_flops
from tools.gpu_check import levers
from tools.gpu_check.parity import TINY
from train.config import RunConfig
from train.config_files import load
from train.watch.metrics import GIB_BYTES

MODES: Final[dict[str, tuple[str, ...]]] = {
    "semi-causal": (),
    "fp8": ("precision=fp8",),
    "causal": ("spans.text.ratio=0",),
    "documents apart": ("data.pack=fit", "data.attend=within"),
    "ZeRO-3": ("zero.stage=3",),
    "attention by flash": ("model.attention=flash",),
}
"""What is measured with all levers on; the first is what levers are tried on."""
TINY_HAS_TO: Final[dict[str, tuple[str, ...]]] = {"fp8": ("model.decoder.num_layers=3",)}
"""What the tiny model lacks for a mode: a block that is neither the first nor the last."""
PACKAGES: Final = ("deepspeed", "megatron-core", "transformers", "triton", "numpy", "pydantic")
SMALL_MATRIX: Final = 256
SMALL_COPY_BYTES: Final = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Row:
    """Speed of one case; None is what was not measured.

    Attributes:
        case: what was done, and why not where it was not.
        levers_off: names of levers.
        sequences: of a microbatch.
        microbatches: of a step.
        ms: milliseconds of a step, or of a part of it.
        tokens_per_second: decoder slots.
        mfu: as `tools.bench.gpu.FORMULA` counts.
        gib: most memory.
        host_ms: milliseconds of a step in which the host does not wait.
        syncs: calls of a step by which the host waits for the device.
    """

    case: str
    levers_off: Sequence[str] = ()
    sequences: int | None = None
    microbatches: int | None = None
    ms: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    gib: float | None = None
    host_ms: float | None = None
    syncs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How much a step holds, and how many are timed."""

    sequences: int
    microbatches: int = 1
    steps: int = 10


def machine(is_tiny: bool) -> tuple[dict[str, Any], int]:
    """Name, versions and rates of the device of this process; bytes of its memory, 0 of a CPU."""
    device = World.here().device
    on_cuda = device.type == "cuda"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if on_cuda else processor_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    for name in PACKAGES:
        try:
            found["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found["versions"][name] = None
    memory_bytes = 0
    if on_cuda:
        found["versions"] |= {
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),
        }
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
    size, size_bytes = (SMALL_MATRIX, SMALL_COPY_BYTES) if is_tiny else (8192, 1 << 30)
    found["matmul_tflops"] = matmul_flops(device, size=size) / 1e12
    found["copy_tbps"] = copy_bytes(device, size_bytes=size_bytes) / 1e12
    if on_cuda:
        torch.cuda.empty_cache()  # this process may go on with other work
    return found, memory_bytes


def rows(
    case: str,
    shapes: Sequence[Shape],
    mode: str,
    off: Sequence[str],
    is_tiny: bool,
    peak: float | None,
    with_parts: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one model at some shapes, and remarks; joins a process group of one rank.

    Args:
        case: what the rows are called.
        shapes: in turn.
        mode: a key of `MODES`.
        off: names of levers.
        is_tiny: the tiny model instead of the 1.3B.
        peak: operations a second that are the whole of MFU, where the device is not known.
        with_parts: say of the first shape how long forward, backward and update take.
    """
    device = World.here().device if dist.is_initialized() else join(timeout_seconds=600).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    whole = peak_flops(name) or peak or matmul_flops(device, size=SMALL_MATRIX)
    files = [str(TINY)] if is_tiny else [*METALM, *REPEATABLE]
    more = TINY_HAS_TO.get(mode, ()) if is_tiny else ()
    config = load(RunConfig, [*files, *levers.overrides(off), *MODES[mode], *more])
    if "torch._dynamo" in sys.modules:
        # What this process compiled for others, which it measured before, counts against a limit.
        torch.compiler.reset()
    found: list[Row] = []
    with Subject(config, device) as subject:
        for shape in shapes:
            measured = subject.measure(
                sequences=shape.sequences,
                microbatches=shape.microbatches,
                steps=shape.steps,
                peak=whole,
            )
            sizes: dict[str, Any] = {
                "levers_off": list(off),
                "sequences": shape.sequences,
                "microbatches": shape.microbatches,
            }
            found.append(
                Row(
                    case=case,
                    **sizes,
                    ms=1000 * measured.step_seconds,
                    tokens_per_second=measured.tokens_per_second,
                    mfu=measured.mfu,
                    gib=measured.memory_bytes / GIB_BYTES,
                    host_ms=1000 * measured.host_seconds,
                    syncs=measured.waits,
                )
            )
            if with_parts and shape is shapes[0]:
                found += [
                    Row(case=f"{case}: {part}", **sizes, ms=1000 * seconds)
                    for part, seconds in (
                        ("forward", measured.forward_seconds),
                        ("backward", measured.backward_seconds),
                        ("norm and update", measured.update_seconds),
                    )
                ]
        remarks = [f"{case}: {note}" for note in subject.notes]
    return [asdict(row) for row in found], remarks
