"""Every layout of a run on so many ranks: which fit, and which is fastest."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple, get_args

from model.recompute import Recompute
from model.semicausal import ModelConfig
from parallel.mesh import LayoutConfig, undivided
from parallel.pipeline import microbatch_fault
from parallel.split import balanced
from tools.plan.machines import GIB, Machine
from tools.plan.memory import Memory, Moments, fullest_moments
from tools.plan.step_time import Seconds, pieces_seconds, step_seconds
from tools.plan.task import Candidate, Task

DAY_SECONDS = 86_400.0
CHUNKS = (1, 2, 4)
MOST_MICRO_SEQUENCES = 64
RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)

FORMULA = (
    "MFU = tokens/s x (6 N + 12 L d T) / (ranks x peak): N all decoder parameters, the token "
    "embedding once; L decoder layers, d width, T slots; encoders are not in it"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A layout, and what it takes by prediction.

    Attributes:
        candidate: the layout.
        moments: memory of the rank that needs most, at each part of a run.
        seconds: of a step.
        tokens_per_second: decoder slots, over all ranks.
        mfu: see `FORMULA`.
        days: for all steps of the run.
    """

    candidate: Candidate
    moments: Moments
    seconds: Seconds
    tokens_per_second: float
    mfu: float
    days: float

    @property
    def memory(self) -> Memory:
        """At the fullest moment of all."""
        return self.moments.fullest

    def record(self) -> dict[str, Any]:
        """Its predictions as plain values."""
        return {
            **self.candidate.overlay,
            "ranks": self.candidate.ranks,
            "memory_bytes": asdict(self.memory) | {"total": self.memory.total},
            "memory_bytes_of": {
                name: memory.total for name, memory in self.moments._asdict().items()
            },
            "seconds": asdict(self.seconds) | {"total": self.seconds.total},
            "tokens_per_second": self.tokens_per_second,
        }


WORDS = {
    "training": ("", "more ZeRO, recomputation or smaller microbatches"),
    "start": (" before ZeRO cuts its part, and less to train", "more tensor or pipeline ranks"),
    "restoring": (" to restore a checkpoint, and less to train", "more ZeRO, or more ranks"),
}
"""Of each part of a run, when that is, and what would fit."""


class Plans(NamedTuple):
    """What was found."""

    ranked: list[Plan]
    """What fits, the fastest first."""
    refusals: Counter[str]
    """Why other layouts are none, and how many each reason is for."""


def all_plans(task: Task, machine: Machine, *, ranks: int) -> Plans:
    """Every layout on so many ranks, ranked by predicted tokens a second.

    Raises:
        ConfigError: the machine was not calibrated at the run's precision.
    """
    ranked: list[Plan] = []
    refusals = Counter[str]()
    too_large: dict[str, list[float]] = {}
    for skeleton in _skeletons(task.model, machine, ranks=ranks, refusals=refusals):
        for choices in _choices(task, machine, skeleton, ranks, refusals):
            for candidate in choices:
                moments = fullest_moments(task, candidate, machine)
                if (part := moments.too_large(machine.usable_bytes)) is None:
                    # What computes more again is slower, and there is room.
                    ranked.append(_timed(task, candidate, machine, moments=moments))
                    break
                too_large.setdefault(part, []).append(moments.fullest.total)
    ranked.sort(key=lambda plan: -plan.tokens_per_second)  # of equals, the plainer come first
    for part, needed in too_large.items():
        reason = too_large_words(min(needed), max(needed), machine, part=part)
        refusals[reason] = len(needed)
    return Plans(ranked, refusals)


def too_large_words(
    least_bytes: float, most_bytes: float, machine: Machine, *, part: str = "training"
) -> str:
    """That layouts of so many bytes on their fullest ranks do not fit, and what would.

    Args:
        least_bytes: of the smallest.
        most_bytes: of the largest.
        machine: what the ranks are.
        part: of a run, as `Moments` names it.
    """
    least, most = f"{least_bytes / GIB:.1f}", f"{most_bytes / GIB:.1f}"
    needed = least if least == most else f"{least} to {most}"
    whole, room = machine.memory_bytes / GIB, machine.usable_bytes / GIB
    when, remedy = WORDS[part]
    return f"needs {needed} GiB of {whole:.1f} ({room:.1f} of them usable){when}: {remedy}"


def one_plan(task: Task, candidate: Candidate, machine: Machine) -> Plan:
    """What one given layout takes, whether it fits or not."""
    return _timed(task, candidate, machine, moments=fullest_moments(task, candidate, machine))


def _timed(task: Task, candidate: Candidate, machine: Machine, *, moments: Moments) -> Plan:
    seconds = step_seconds(task, candidate, machine)
    speed = task.sequences * task.sequence_tokens / seconds.total
    peak_flops = candidate.ranks * machine.peak_flops[task.precision]
    return Plan(
        candidate=candidate,
        moments=moments,
        seconds=seconds,
        tokens_per_second=speed,
        mfu=speed * flops_per_token(task) / peak_flops,
        days=task.steps * seconds.total / DAY_SECONDS,
    )


def flops_per_token(task: Task) -> float:
    """6 N + 12 L d T, see `FORMULA`."""
    decoder = task.model.decoder
    return (
        6 * task.decoder_elements + 12 * decoder.num_layers * decoder.width * task.sequence_tokens
    )


def with_best_split(task: Task, candidate: Candidate, machine: Machine) -> Candidate:
    """With the split that makes the slowest stage fastest on this machine."""
    layout = candidate.layout
    if layout.pipeline == 1:
        split = [task.model.decoder.num_layers]
        return replace(candidate, layout=layout.model_copy(update={"split": split}))
    pieces = pieces_seconds(task, candidate, machine)
    split = balanced(
        task.model.decoder.num_layers,
        pipeline=layout.pipeline,
        chunks=layout.chunks,
        layer=pieces.layer.total,
        first=pieces.first.total,
        last=pieces.last.total,
    )
    return replace(candidate, layout=layout.model_copy(update={"split": list(split)}))


def _skeletons(
    model: ModelConfig, machine: Machine, *, ranks: int, refusals: Counter[str]
) -> Iterator[LayoutConfig]:
    """Degrees of tensor and pipeline parallelism that the model and the nodes allow."""
    num_layers = model.decoder.num_layers
    for tensor in _divisors(ranks):
        if tensor > machine.ranks_per_node:
            refusals[f"tensor {tensor}: straddles nodes of {machine.ranks_per_node} ranks"] += 1
        elif found := undivided(model, tensor=tensor):
            refusals[f"tensor {tensor}: does not divide {', '.join(found)}"] += 1
        else:
            for pipeline in _divisors(ranks // tensor):
                if pipeline <= num_layers:
                    yield LayoutConfig(tensor=tensor, pipeline=pipeline)
                else:
                    refusals[f"pipeline {pipeline}: more stages than {num_layers} layers"] += 1


def _choices(
    task: Task, machine: Machine, skeleton: LayoutConfig, ranks: int, refusals: Counter[str]
) -> Iterator[Iterator[Candidate]]:
    """Everything else that can be chosen; each time the same with ever more recomputed."""
    data = ranks // skeleton.model_ranks
    if task.sequences % data:
        refusals[f"data {data}: batch.sequences {task.sequences} does not divide"] += 1
        return
    sequences = task.sequences // data
    # Attention keeps no scores but in encoders: without any, `selective` is `none`.
    recomputes = [r for r in RECOMPUTES if r != "selective" or task.model.encoders]
    for layout, micro_sequences in product(_variants(task, skeleton), _divisors(sequences)):
        if micro_sequences > MOST_MICRO_SEQUENCES:
            continue
        stages, chunks = layout.pipeline, layout.chunks
        num_microbatches = sequences // micro_sequences
        if microbatch_fault(num_microbatches, pipeline=stages, chunks=chunks) is not None:
            refusals[f"chunks {chunks}: need a multiple of {stages} microbatches"] += 1
            continue
        rows = micro_sequences * task.sequence_tokens
        if layout.sequence_parallel and rows % layout.tensor:
            refusals[f"tensor {layout.tensor}: does not divide {rows} slots"] += 1
            continue
        draft = Candidate(
            layout=layout,
            data=data,
            stage=0,
            micro_sequences=micro_sequences,
            num_microbatches=num_microbatches,
        )
        recomputed = functools.cache(partial(_recomputed, task, machine, draft))
        for stage in _stages(task, data=data):
            yield (replace(recomputed(recompute), stage=stage) for recompute in recomputes)


def _recomputed(task: Task, machine: Machine, draft: Candidate, recompute: Recompute) -> Candidate:
    """With the split that is best where so much is computed again."""
    layout = draft.layout.model_copy(update={"recompute": recompute})
    return with_best_split(task, replace(draft, layout=layout), machine)


def _variants(task: Task, skeleton: LayoutConfig) -> Iterator[LayoutConfig]:
    most_chunks = task.model.decoder.num_layers // skeleton.pipeline
    chunk_counts = [c for c in CHUNKS if c <= most_chunks] if skeleton.pipeline > 1 else [1]
    for sequence_parallel in (False, True) if skeleton.tensor > 1 else (False,):
        for chunks in chunk_counts:
            update = {"sequence_parallel": sequence_parallel, "chunks": chunks}
            yield skeleton.model_copy(update=update)


def _stages(task: Task, *, data: int) -> Sequence[int]:
    """ZeRO stages that differ from each other."""
    if task.zero.offload_directory is not None:
        return (3,)
    # In bf16 stage 0 is stage 1; and alone, there is nobody to share with.
    plainest = 0 if task.precision == "fp32" else 1
    return range(plainest, 4 if data > 1 else plainest + 1)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
