"""Real training steps under a layout, for what memory and time they take."""

import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle

import torch.distributed as dist

from model.batch import Batch
from model.semicausal import ModelConfig
from parallel.agreement import gathered
from parallel.engine import build_engine, build_part
from parallel.launch import World
from parallel.mesh import Mesh, build_mesh, forget_groups
from parallel.zero.config import AdamW, Precision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from tools.plan.live import Meter, metered
from tools.plan.task import Candidate, Task
from tools.random_batches import SEED, random_batches
from tools.ranks import run_ranks
from train.data.spans.at_random import RandomSpansConfig
from train.step import train_step

METERED_STEPS = 2
"""The second one starts with all the state that AdamW creates in the first."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a trial took.

    Attributes:
        peak_bytes: most bytes of live tensors, on each rank.
        step_seconds: of each timed step, on the slowest rank.
    """

    peak_bytes: tuple[int, ...]
    step_seconds: tuple[float, ...]

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
    task: Task,
    candidate: Candidate,
    *,
    timed_steps: int,
    metered_memory: bool = True,
    timeout_seconds: float = 600,
) -> Observation:
    """Run a few steps on fresh gloo ranks of one thread each.

    Args:
        task: what to run, as `measured_task` makes it.
        candidate: how it is spread.
        timed_steps: steps that are timed, after one that is not.
        metered_memory: whether memory is looked at; it costs two steps.
        timeout_seconds: after which the stacks of all ranks are shown and the ranks ended.

    Raises:
        RanksFailed: a rank failed or hung.
    """
    return run_ranks(
        _observe,
        task,
        candidate,
        timed_steps,
        metered_memory,
        ranks=candidate.ranks,
        threads=1,
        timeout_seconds=timeout_seconds,
    )


def _observe(
    task: Task, candidate: Candidate, timed_steps: int, metered_memory: bool
) -> Observation:
    mesh = mesh_of(candidate)
    upcoming = cycle(batches_of(task, candidate, mesh))

    def step(engine: ZeroEngine) -> None:
        train_step(engine, [next(upcoming) for _ in range(candidate.num_microbatches)])

    with metered(mesh.world.device) if metered_memory else nullcontext(Meter()) as meter:
        engine = engine_of(task, candidate, mesh)
        for _ in range(METERED_STEPS if metered_memory else 1):
            step(engine)
    seconds: list[float] = []
    for number in range(timed_steps + 1):
        dist.barrier()
        started = time.perf_counter()
        step(engine)
        if number:
            seconds.append(time.perf_counter() - started)
    everyone = gathered((meter.peak_bytes, seconds))
    engine.close()
    forget_groups()
    return Observation(
        peak_bytes=tuple(peak for peak, _ in everyone),
        step_seconds=tuple(max(times) for times in zip(*(s for _, s in everyone), strict=True)),
    )


def mesh_of(candidate: Candidate) -> Mesh:
    """This rank's place; every rank must call it."""
    return build_mesh(candidate.layout, World.here())


def engine_of(task: Task, candidate: Candidate, mesh: Mesh) -> ZeroEngine:
    """This rank's part of the model under ZeRO; every rank must call it."""
    return build_engine(
        build_part(task.model, candidate.layout, mesh, seed=SEED),
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
