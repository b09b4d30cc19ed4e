"""Steps of which sequences are dealt by what their pictures cost, and as they come.

On two data ranks, and on two stages of a pipeline; a quarter of the sequences have pictures. What
the planner says of a step whose ranks and microbatches all have the mean stands beside both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from model.batch import Batch
from model.encoders.image import ImageEncoderConfig
from model.encoders.protocol import SpanLoad
from parallel.agreement import gathered
from parallel.costs import item_cost
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh, build_mesh
from parallel.zero.config import ZeroConfig
from tools.bench.media.pictures import batch_of, sequence
from tools.bench.rounds import Findings, contestants, spread
from tools.bench.shapes import PictureShape, Plan
from tools.bench.stages import calibrated
from tools.command import write_json
from tools.plan.measure import engine_of
from tools.plan.search import one_plan, with_best_split
from tools.plan.task import Candidate, Task
from tools.random_batches import SEED
from train.data.balance import balanced, spaced
from train.data.sample import Sample
from train.step import train_step

WITH_PICTURES: Final = 0.25
FILLED: Final = 0.9
"""Of a sequence's slots, that pictures take at most where there are any."""
STEPS: Final = 6
"""On data ranks: what one batch happens to be dealt says little."""
RANKS: Final = 2
BALANCE: Final = "balance"
"""Setting that `BALANCE_NAME` is written from."""
BALANCE_NAME: Final = "balance.json"
KEYS: Final = ("naive_seconds", "balanced_seconds", "planned_seconds", "loss_difference")
"""What `BALANCE_NAME` holds of each way to spread."""


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """A global batch.

    Attributes:
        samples: its sequences, as they come.
        costs: of their pictures.
    """

    samples: list[Sample]
    costs: list[int]

    def part(self, layout: LayoutConfig, *, micro: int, mesh: Mesh, deals: bool) -> list[list[int]]:
        """The places of each microbatch of this rank, as a run would have them."""
        order = balanced(self.costs) if deals else list(range(len(self.costs)))
        share = len(order) // mesh.data_size
        mine = order[mesh.data_rank * share :][:share]
        parts = [mine[first : first + micro] for first in range(0, share, micro)]
        if not deals:
            return parts
        costs = [sum(self.costs[place] for place in part) for part in parts]
        return [parts[place] for place in spaced(costs, stages=layout.pipeline)]


def on_data_ranks(plan: Plan) -> Findings:
    """Two data ranks under ZeRO-1, which meet at the end of a step; every rank must call it."""
    return _compared(plan, plan.dealt, LayoutConfig(), name="data_ranks")


def on_stages(plan: Plan) -> Findings:
    """Two stages, which meet in each microbatch; every rank must call it."""
    return _compared(plan, plan.dealt_stages, LayoutConfig(pipeline=RANKS), name="stages")


def _compared(plan: Plan, shape: PictureShape, layout: LayoutConfig, *, name: str) -> Findings:
    encoder = shape.image_encoder()
    config = shape.seeing(encoder)
    data = RANKS // layout.pipeline
    micro = shape.sequences
    count = STEPS if data > 1 else 1
    steps = [drawn(shape, encoder, seed=number) for number in range(count)]
    task = Task(
        model=config,
        precision="fp32",
        sequences=shape.pictures,
        sequence_tokens=shape.sequence_tokens,
        spans={"image": mean_load([sample for step in steps for sample in step.samples])},
        zero=ZeroConfig(),
        steps=1,
    )
    # Every rank has its own measurements, and all must choose the same.
    machine = gathered(calibrated(shape, seconds=plan.rate_seconds))[0]
    draft = Candidate(
        layout=layout,
        data=data,
        stage=1 if data > 1 else 0,
        micro_sequences=micro,
        num_microbatches=shape.pictures // (data * micro),
    )
    candidate = with_best_split(task, draft, machine)
    mesh = build_mesh(candidate.layout, World.here())
    ways = {"naive": False, "balanced": True}
    batches: dict[str, list[list[Batch]]] = {}
    for way, deals in ways.items():
        parts = [step.part(layout, micro=micro, mesh=mesh, deals=deals) for step in steps]
        batches[way] = [
            [
                batch_of(
                    [step.samples[place] for place in part], encoder, slots=shape.sequence_tokens
                )
                for part in of_step
            ]
            for step, of_step in zip(steps, parts, strict=True)
        ]
    engines = {way: engine_of(task, candidate, mesh) for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}

    def train(way: str) -> None:
        for microbatches in batches[way]:
            losses[way].append(train_step(engines[way], microbatches).averages.loss)

    found = Findings(
        settings=shape.settings
        | {
            "ranks": RANKS,
            "threads_per_rank": 1,
            "steps_at_a_time": count,
            "microbatches": draft.num_microbatches,
            "split": list(candidate.split),
        }
    )
    seconds = found.compare(
        contestants(
            {way: partial(train, way) for way in ways},
            tokens=count * shape.pictures * shape.sequence_tokens,
            precision="fp32",
        ),
        plan.heavy,
        {f"balanced_vs_naive_{name}": ("naive", "balanced")},
    )
    taken = {way: spread(each).median / count for way, each in seconds.items()}
    pairs = zip(losses["naive"], losses["balanced"], strict=True)
    values = (
        taken["naive"],
        taken["balanced"],
        one_plan(task, candidate, machine).seconds.total,
        max(abs(one - other) / one for one, other in pairs),
    )
    found.settings[BALANCE] = {name: dict(zip(KEYS, values, strict=True))}
    return found


def drawn(shape: PictureShape, encoder: ImageEncoderConfig, *, seed: int) -> Dealt:
    """A global batch, a quarter of which has as many pictures as fit into most of its slots."""
    random = np.random.default_rng((SEED, seed))
    places = set(random.permutation(shape.pictures)[: round(WITH_PICTURES * shape.pictures)])
    samples: list[Sample] = []
    costs: list[int] = []
    for place in range(shape.pictures):
        sizes: list[list[int]] = []
        vectors = 0
        while place in places:
            size = random.integers(shape.side_pixels // 2, shape.side_pixels + 1, 2).tolist()
            more = encoder.item_vectors(size)
            if vectors + more > FILLED * shape.sequence_tokens and sizes:
                break
            sizes.append(size)
            vectors += more
        samples.append(
            sequence(
                random,
                encoder,
                sizes=sizes,
                text_tokens=shape.sequence_tokens - vectors,
                vocabulary=shape.vocabulary,
            )
        )
        each = [encoder.item_vectors(size) for size in sizes]
        costs.append(sum(item_cost(shape.seeing(encoder), "image", count) for count in each))
    return Dealt(samples=samples, costs=costs)


def mean_load(samples: Sequence[Sample]) -> SpanLoad:
    """Pictures of one sequence on average."""
    vectors = [item.stop - item.start for sample in samples for item in sample.items]
    return SpanLoad(
        vectors=sum(vectors) / len(samples),
        spans=len(vectors) / len(samples),
        longest=max(vectors),
    )


def write_balance(path: Path, findings: Mapping[str, Findings]) -> None:
    """Write `data_ranks` and `stages`, those of them that were looked at."""
    found: dict[str, object] = {}
    for each in findings.values():
        of_case = each.settings.get(BALANCE)
        if isinstance(of_case, dict):
            found |= of_case
    if found:
        write_json(path, found)
