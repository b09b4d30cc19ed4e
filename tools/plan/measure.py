"""Real training steps under a layout, for what memory and time they take."""

import statistics
import time
from dataclasses import dataclass
from itertools import cycle

import torch
import torch.distributed as dist

from model.batch import Batch
from model.layers import initialize
from model.semicausal import ModelConfig
from parallel.agreement import gathered
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh, build_mesh, forget_groups
from parallel.pipeline import forward_backward
from parallel.spread import build_part
from parallel.zero.config import AdamWOptions, Precision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from parallel.zero.engine import initialize as initialize_zero
from tools.bench.processes import in_processes
from tools.bench.shapes import Shape
from tools.bench.training import batches
from tools.plan.from_config import random_spans
from tools.plan.live import metered
from tools.plan.task import Candidate, Task
from train.data.spans.kinds import RandomSpansConfig
from train.optim import parameter_groups

SEED = 1
METERED_STEPS = 2
"""The second one starts with all the state that AdamW creates in the first."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model in a layout, and the batch of a step.

    Attributes:
        model: the whole model.
        layout: how it is spread.
        split: decoder layers of each piece.
        zero: how training state is spread over data ranks.
        precision: of parameters and activations.
        ranks: processes.
        micro_sequences: sequences in a microbatch.
        num_microbatches: microbatches of a model copy in a step.
        sequence_tokens: slots in a sequence.
        span_share: share of the slots in spans.
    """

    model: ModelConfig
    layout: LayoutConfig
    split: tuple[int, ...]
    zero: ZeroConfig
    precision: Precision
    ranks: int
    micro_sequences: int
    num_microbatches: int
    sequence_tokens: int
    span_share: float


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


def as_planned(trial: Trial) -> tuple[Task, Candidate]:
    """A trial as the planner sees it."""
    data = trial.ranks // trial.layout.model_ranks
    load = random_spans(
        RandomSpansConfig(ratio=trial.span_share), sequence_tokens=trial.sequence_tokens
    )
    task = Task(
        model=trial.model,
        precision=trial.precision,
        sequences=trial.micro_sequences * trial.num_microbatches * data,
        sequence_tokens=trial.sequence_tokens,
        spans={modality: load for modality in trial.model.encoders},
        zero=trial.zero,
        steps=1,
    )
    candidate = Candidate(
        layout=trial.layout.model_copy(update={"split": list(trial.split)}),
        data=data,
        stage=trial.zero.stage,
        micro_sequences=trial.micro_sequences,
        num_microbatches=trial.num_microbatches,
    )
    return task, candidate


def observe(
    trial: Trial, *, timed_steps: int, metered_memory: bool = True, timeout_seconds: float = 600
) -> Observation:
    """Run a few steps on fresh gloo ranks of one thread each.

    Args:
        trial: what to run.
        timed_steps: steps that are timed, after one that is not.
        metered_memory: whether memory is looked at; it costs two steps.
        timeout_seconds: after which the stacks of all ranks are shown and the ranks ended.

    Raises:
        ProcessFailed: a rank failed or hung.
    """
    return in_processes(
        _observe,
        trial,
        timed_steps,
        metered_memory,
        ranks=trial.ranks,
        threads=1,
        timeout_seconds=timeout_seconds,
    )


def _observe(trial: Trial, timed_steps: int, metered_memory: bool) -> Observation:
    mesh = mesh_of(trial)
    upcoming = cycle(batches_of(trial, mesh))

    def step(engine: ZeroEngine) -> None:
        train_step(engine, [next(upcoming) for _ in range(trial.num_microbatches)])

    peak_bytes = 0
    if metered_memory:
        with metered(mesh.world.device) as meter:
            engine = engine_of(trial, mesh)
            for _ in range(METERED_STEPS):
                step(engine)
        peak_bytes = meter.peak_bytes
    else:
        engine = engine_of(trial, mesh)
        step(engine)
    seconds: list[float] = []
    for number in range(timed_steps + 1):
        dist.barrier()
        started = time.perf_counter()
        step(engine)
        if number:
            seconds.append(time.perf_counter() - started)
    everyone = gathered((peak_bytes, seconds))
    engine.close()
    forget_groups()
    return Observation(
        peak_bytes=tuple(peak for peak, _ in everyone),
        step_seconds=tuple(max(times) for times in zip(*(s for _, s in everyone), strict=True)),
    )


def mesh_of(trial: Trial) -> Mesh:
    """This rank's place; every rank must call it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)
    return build_mesh(trial.layout, world)


def engine_of(trial: Trial, mesh: Mesh) -> ZeroEngine:
    """This rank's part of the model under ZeRO; every rank must call it."""
    model = build_part(trial.model, trial.layout, mesh, split=trial.split)
    initialize(model, seed=SEED)
    return initialize_zero(
        model,
        param_groups=parameter_groups(model, 0.01),
        optim=AdamWOptions(3e-4, (0.9, 0.98), 1e-6),
        precision=trial.precision,
        config=trial.zero,
        clip_norm=2.0,
        mesh=mesh,
    )


def train_step(engine: ZeroEngine, given: list[Batch]) -> None:
    """A step as `python -m train` takes it, without its exchange of counts and its log."""
    scored = sum(batch.num_scored for batch in given) * engine.mesh.data_size
    forward_backward(engine, given, scale=1 / scored)
    engine.step()


def batches_of(trial: Trial, mesh: Mesh) -> list[Batch]:
    """Two steps' microbatches, different on each data rank."""
    decoder = trial.model.decoder
    shape = Shape(
        width=decoder.width,
        num_layers=decoder.num_layers,
        heads=decoder.heads,
        vocabulary=decoder.vocabulary,
        sequence_tokens=trial.sequence_tokens,
        sequences=trial.micro_sequences,
        encoder_width=0,
        encoder_heads=0,
    )
    per_copy = 2 * trial.num_microbatches
    ratio = trial.span_share if trial.model.encoders else 0.0
    everyones = batches(shape, ratio=ratio, count=per_copy * mesh.data_size)
    return everyones[per_copy * mesh.data_rank : per_copy * (mesh.data_rank + 1)]
