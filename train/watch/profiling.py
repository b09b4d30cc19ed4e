"""Where the time of chosen steps goes: a trace for Perfetto, seconds by part and kind of work."""

import gzip
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from parallel.mesh import Mesh
from parallel.named import PREFIX, Part
from train.config import RunConfig
from train.storage.place import Place
from train.storage.record import Record
from train.watch.heartbeat import Heartbeat, Section
from train.watch.monitor import Monitor

TRACE_SUFFIX: Final = ".trace.json.gz"

_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "communication": ("c10d::", "gloo:", "nccl:", "record_param_comms"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "matrix products": (
        *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm"),
        *("mkldnn", "aten::matmul", "aten::linear"),
    ),
    "optimiser": ("_fused_adam", "_foreach_"),
    "norms and activations": ("norm", "gelu", "silu", "softmax"),
    "copies": ("aten::copy_", "aten::cat", "aten::index", "aten::fill_", "aten::embedding"),
}
"""Kinds of work, by what names of torch's operations hold; the first that fits."""
OTHER: Final = "other"
KINDS: Final = (*_KINDS, OTHER)


class Profiled(Record):
    """What a rank has done in a step.

    Attributes:
        step: its number.
        rank: this process's.
        stage: of the pipeline.
        stages: that there are.
        pieces: of the model that the stage holds.
        tensor_rank: among those that share a layer.
        device: whose time is told, `cpu` or `cuda`.
        seconds: by part of the step and kind of work.
    """

    step: int
    rank: int
    stage: int
    stages: int
    pieces: int
    tensor_rank: int
    device: str
    seconds: dict[str, dict[str, float]]


class Profiler:
    """Profiles the chosen steps on this rank.

    Args:
        config: of the run, which names the steps.
        monitor: told of it.
        beat: told of the time that writing takes.
        mesh: this rank's place.
    """

    def __init__(self, config: RunConfig, monitor: Monitor, beat: Heartbeat, mesh: Mesh) -> None:
        wanted = config.profile if mesh.data_rank == 0 else None
        self._steps = frozenset(wanted.steps if wanted is not None else ())
        self._config = config
        self._monitor = monitor
        self._beat = beat
        self._mesh = mesh
        self._profile: Any = None

    def begin(self, step: int) -> None:
        """Before a step."""
        if step not in self._steps:
            return
        if self._mesh.world.is_main:
            # Of ranks in another layout, when the step was made before.
            shutil.rmtree(self._place(step), ignore_errors=True)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with self._monitor.guard("profile"):
            self._profile = profile(activities=activities)
            self._profile.start()

    def end(self, step: int) -> None:
        """Behind a step."""
        if self._profile is None:
            return
        seen, self._profile = self._profile, None
        self._beat.enter(Section.PROFILE, step=step)
        with self._monitor.guard("profile"):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seen.stop()
            self._write(step, seen)
            run, where = self._config.directory, self._config.directory.profile.name
            self._monitor.note(
                f"step {step} is profiled in {run}/{where}: "
                f"python -m tools.trace {shlex.quote(str(run))}"
            )

    def _place(self, step: int) -> Path:
        return self._config.directory.profile / f"step_{step:08d}"

    def _write(self, step: int, seen: Any) -> None:
        mesh, place = self._mesh, self._place(step)
        place.mkdir(parents=True, exist_ok=True)
        name = f"rank_{mesh.world.rank:05d}"
        trace, draft = place / f"{name}{TRACE_SUFFIX}", place / f".{name}.json"
        try:
            seen.export_chrome_trace(str(draft))
            with draft.open("rb") as source, gzip.open(trace, "wb") as target:
                shutil.copyfileobj(source, target)
        finally:
            draft.unlink(missing_ok=True)
        device = mesh.world.device.type
        found = Profiled(
            step=step,
            rank=mesh.world.rank,
            stage=mesh.pipeline_rank,
            stages=mesh.pipeline_size,
            pieces=self._config.layout.chunks,
            tensor_rank=mesh.tensor_rank,
            device=device,
            seconds=seconds_by_part(seen.events(), on_device=device != "cpu"),
        )
        Place.of(place / f"{name}.json").write(found.model_dump_json().encode())


def seconds_by_part(events: Iterable[Any], *, on_device: bool) -> dict[str, dict[str, float]]:
    """Seconds of a profile by part of the step and kind of work.

    Args:
        events: torch's, each with its own time, without that of the operations in it.
        on_device: whether the GPU's time is asked for.
    """
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        if event.name.startswith(PREFIX):
            continue  # what is not an operation is the host's own
        if event.device_type.name != "CPU":
            continue  # a kernel, whose time its operation has already
        taken = event.self_device_time_total if on_device else event.self_cpu_time_total
        if taken > 0:
            seconds[_part_of(event)][_kind_of(event.name)] += taken / 1e6
    return {part: dict(kinds) for part, kinds in seconds.items()}


def _part_of(event: Any) -> str:
    while event is not None:
        if event.name.startswith(PREFIX):
            return event.name.split()[1]
        if event.name.startswith("autograd::"):
            return Part.BACKWARD  # in a thread of its own
        event = event.cpu_parent
    return OTHER


def _kind_of(name: str) -> str:
    for kind, parts in _KINDS.items():
        if any(part in name for part in parts):
            return kind
    return OTHER
