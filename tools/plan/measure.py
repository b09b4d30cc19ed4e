"""Real training steps under a layout, for what memory and time they take."""

import os
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, cycle
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from model.adapters.tuning import tune
from model.batch import Batch
from model.semicausal import ModelConfig
from parallel.agreement import gathered
from parallel.engine import build_engine, build_part
from parallel.launch import World
from parallel.mesh import Mesh, build_mesh, forget_groups
from parallel.zero.config import AdamW, Precision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from tools.plan.task import Candidate, Task
from tools.random_batches import SEED, random_batches
from tools.ranks import run_ranks
from train.data.spans.at_random import RandomSpansConfig
from train.step import train_step

TIMEOUT_SECONDS = 900.0
STDERR = 2
METERED_STEPS = 2
"""The second one starts with all the state that AdamW creates in the first."""


class Observation(NamedTuple):
    """What a trial took."""

    peak_bytes: list[int]
    """Most bytes of live tensors, on each rank."""
    step_seconds: list[float]
    """Of each timed step, on the slowest rank."""

    @property
    def seconds(self) -> float:
        """Median of the steps."""
        return statistics.median(self.step_seconds)


def measured_task(
    model: ModelConfig,
    *,
    precision: Precision = "fp32",
    sequences: int,
    sequence_tokens: int,
    span_share: float,
) -> Task:
    """What `batches_of` makes batches for: random spans as in the paper."""
    spans = RandomSpansConfig(ratio=span_share).load(sequence_tokens)
    return Task(
        model=model,
        precision=precision,
        sequences=sequences,
        sequence_tokens=sequence_tokens,
        spans={modality: spans for modality in model.encoders},
        zero=ZeroConfig(),
        steps=1,
    )


def observe(
    task: Task, candidate: Candidate, *, timed_steps: int, metered_memory: bool = True
) -> Observation:
    """Run a few steps on fresh gloo ranks of one thread each.

    Args:
        task: what to run, as `measured_task` makes it.
        candidate: how it is spread.
        timed_steps: steps that are timed, after one that is not.
        metered_memory: whether memory is looked at; it costs two steps.

    Raises:
        RanksFailed: a rank failed or hung.
    """
    return run_ranks(
        _observe,
        *(task, candidate, timed_steps, metered_memory),
        ranks=candidate.ranks,
        timeout_seconds=TIMEOUT_SECONDS,
    )


def _observe(
    task: Task, candidate: Candidate, timed_steps: int, metered_memory: bool
) -> Observation:
    mesh = build_mesh(candidate.layout, World.here())
    upcoming = cycle(batches_of(task, candidate, mesh))

    def step(engine: ZeroEngine) -> None:
        train_step(engine, [next(upcoming) for _ in range(candidate.num_microbatches)])

    with metered() if metered_memory else nullcontext(Meter()) as meter:
        engine = engine_of(task, candidate, mesh)
        for _ in range(METERED_STEPS if metered_memory else 1):
            step(engine)
    seconds: list[float] = []
    for _ in range(timed_steps + 1):
        dist.barrier()
        started = time.perf_counter()
        step(engine)
        seconds.append(time.perf_counter() - started)
    everyone = gathered((meter.peak_bytes, seconds[1:]))
    engine.close()
    forget_groups()
    peaks, times = zip(*everyone, strict=True)
    return Observation(list(peaks), list(map(max, zip(*times, strict=True))))


def engine_of(task: Task, candidate: Candidate, mesh: Mesh) -> ZeroEngine:
    """This rank's part of the model under ZeRO; every rank must call it."""
    model = build_part(task.model, candidate.layout, mesh, seed=SEED)
    tune(model, task.tuning, seed=SEED)
    return build_engine(
        model,
        mesh,
        adamw=AdamW(learning_rate=3e-4),
        zero=task.zero.model_copy(update={"stage": candidate.stage}),
        precision=task.precision,
    )


def batches_of(task: Task, candidate: Candidate, mesh: Mesh) -> list[Batch]:
    """Two steps' microbatches, different on each data rank."""
    per_copy = 2 * candidate.num_microbatches
    ratio = sum(part.vectors for part in task.spans.values()) / task.sequence_tokens
    everyones = random_batches(
        vocabulary=task.model.decoder.vocabulary,
        sequence_tokens=task.sequence_tokens,
        sequences=candidate.micro_sequences,
        ratio=ratio,
        count=per_copy * mesh.data_size,
    )
    return everyones[per_copy * mesh.data_rank : per_copy * (mesh.data_rank + 1)]


@dataclass
class Meter:
    """What tensors took while the meter ran.

    Attributes:
        peak_bytes: most that was live at a time, of what was allocated under the meter.
        live_bytes: what was still live at its end.
    """

    peak_bytes: int = 0
    live_bytes: int = 0


@contextmanager
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


@contextmanager
def _stderr_to_nowhere() -> Generator[None]:
    kept = os.dup(STDERR)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
