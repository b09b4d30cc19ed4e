"""Rates of a device and rows of speed, each computed in a process of its own."""

import gc
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any, Final

import torch
import torch.distributed as dist

from parallel.launch import World, join, processor_name
from tools.bench.gpu import METALM, REPEATABLE, Subject, copy_bytes, matmul_flops
from tools.gpu_check import levers
from tools.gpu_check.parity import TINY
from tools.gpu_check.targets import CAUSAL
from train.config import RunConfig
from train.config_files import load
from train.watch.metrics import GIB_BYTES
from train.watch.utilisation import peak_flops

MODES: Final[dict[str, tuple[str, ...]]] = {
    "semi-causal": (),
    "fp8": ("precision=fp8",),
    "causal": (CAUSAL,),
    "documents apart": ("data.pack=fit", "data.attend=within"),
    "ZeRO-3": ("zero.stage=3",),
    "attention by flash": ("model.attention=flash",),
}
"""What is measured with all levers on; the first is what levers are tried on."""
MODE_SECONDS: Final[dict[str, float]] = {"ZeRO-3": 90}
"""What one takes that has more to compile than the others."""
TINY_HAS_TO: Final[dict[str, tuple[str, ...]]] = {"fp8": ("model.decoder.num_layers=3",)}
"""What the tiny model lacks for a mode: a block that is neither the first nor the last."""
USUAL_SEQUENCES: Final = ((120, 16), (70, 12), (40, 4), (0, 1))
"""Of a microbatch of the 1.3B, with all levers on, by GiB of the device's memory."""
SMALLER: Final = (12, 8, 4, 2, 1)
"""Tried in turn where so many do not fit."""
MOST_STEPS: Final = 4
"""That are timed where each has several microbatches."""
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
        mfu: as `train.watch.utilisation.FORMULA` counts.
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
class Case:
    """What is measured with one model.

    Attributes:
        name: of its rows.
        mode: a key of `MODES`.
        off: names of levers.
        sequences: of a microbatch, or fewer if they do not fit; None: what usually fits.
        microbatches: of a step, in turn.
        steps: that are timed.
        with_parts: say of the first how long forward, backward and update take.
    """

    name: str
    mode: str = "semi-causal"
    off: Sequence[str] = ()
    sequences: int | None = None
    microbatches: Sequence[int] = (1,)
    steps: int = 10
    with_parts: bool = False

    @property
    def row(self) -> Row:
        """That of a case which was not measured."""
        return Row(case=self.name, levers_off=list(self.off), sequences=self.sequences,
                   microbatches=self.microbatches[0])  # fmt: skip

    def sizes(self, memory_bytes: int) -> list[int]:
        """Sequences of a microbatch to try, until some fit."""
        gib = memory_bytes / GIB_BYTES
        first = self.sequences or next(count for least, count in USUAL_SEQUENCES if gib >= least)
        return [first, *(size for size in SMALLER if size < first)]


def machine(is_tiny: bool) -> dict[str, Any]:
    """Name, versions and rates of the device of this process."""
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
    if on_cuda:
        found["versions"] |= {
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),
        }
    size, size_bytes = (SMALL_MATRIX, SMALL_COPY_BYTES) if is_tiny else (8192, 1 << 30)
    found["matmul_tflops"] = matmul_flops(device, size=size) / 1e12
    found["copy_tbps"] = copy_bytes(device, size_bytes=size_bytes) / 1e12
    if on_cuda:
        torch.cuda.empty_cache()  # this process may go on with other work
    return found


def rows(case: Case, is_tiny: bool, peak: float | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a case, of the most sequences that fit, and remarks; joins a group of one rank.

    Args:
        case: what is measured.
        is_tiny: the tiny model instead of the 1.3B.
        peak: operations a second that are the whole of MFU, where the device is not known.

    Raises:
        torch.OutOfMemoryError: not even one sequence fits.
    """
    device = World.here().device if dist.is_initialized() else join(timeout_seconds=600).device
    on_cuda = device.type == "cuda"
    whole = peak_flops(torch.cuda.get_device_name(device)) if on_cuda else None
    whole = whole or peak or matmul_flops(device, size=SMALL_MATRIX)
    memory_bytes = torch.cuda.get_device_properties(device).total_memory if on_cuda else 0
    for sequences in case.sizes(memory_bytes):
        if "torch._dynamo" in sys.modules:
            # What this process compiled before, for others, counts against a limit.
            torch.compiler.reset()
        try:
            return _measured(case, device, sequences=sequences, is_tiny=is_tiny, peak=whole)
        except torch.OutOfMemoryError:
            if sequences == 1:
                raise
        gc.collect()  # what failed holds its tensors no longer
    raise AssertionError("one sequence is always tried")


def _measured(
    case: Case, device: torch.device, *, sequences: int, is_tiny: bool, peak: float
) -> tuple[list[dict[str, Any]], list[str]]:
    files = [str(TINY)] if is_tiny else [*METALM, *REPEATABLE]
    more = TINY_HAS_TO.get(case.mode, ()) if is_tiny else ()
    overrides = (*levers.overrides(case.off), *MODES[case.mode], *more)
    found: list[Row] = []
    with Subject(load(RunConfig, [*files, *overrides]), device) as subject:
        for microbatches in case.microbatches:
            measured = subject.measure(
                sequences=sequences,
                microbatches=microbatches,
                steps=case.steps if microbatches == 1 else min(MOST_STEPS, case.steps),
                peak=peak,
            )
            row = replace(case.row, sequences=sequences, microbatches=microbatches)
            found.append(
                replace(
                    row,
                    ms=1000 * measured.step_seconds,
                    tokens_per_second=measured.tokens_per_second,
                    mfu=measured.mfu,
                    gib=measured.memory_bytes / GIB_BYTES,
                    host_ms=1000 * measured.host_seconds,
                    syncs=measured.waits,
                )
            )
            if case.with_parts and len(found) == 1:
                found += [
                    replace(row, case=f"{case.name}: {part}", ms=1000 * seconds)
                    for part, seconds in (
                        ("forward", measured.forward_seconds),
                        ("backward", measured.backward_seconds),
                        ("norm and update", measured.update_seconds),
                    )
                ]
        remarks = [f"{case.name}: {note}" for note in subject.notes]
    return [asdict(row) for row in found], remarks
