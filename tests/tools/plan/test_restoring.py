"""A checkpoint is restored in what is predicted: bytes against what torch allocates."""

import contextlib
import os
import shutil
from collections.abc import Generator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from model.adapters.kinds import LoraConfig
from model.adapters.tuning import Tuning
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh, forget_groups
from parallel.zero.config import Precision
from parallel.zero.engine import ZeroEngine
from tests import warm
from tools.plan.check import MEMORY_TOLERANCE, _shape
from tools.plan.check import _task as _shaped
from tools.plan.given import memory_fault
from tools.plan.machines import nominal
from tools.plan.measure import batches_of, engine_of, metered
from tools.plan.memory import rank_moments
from tools.plan.search import all_plans, one_plan
from tools.plan.task import Candidate, Task
from tools.ranks import RankPool
from train.checkpoint.directory import Retention
from train.checkpoint.local.config import LocalConfig
from train.checkpoint.local.disks import Disks
from train.checkpoint.local.finding import whole_steps
from train.checkpoint.local.saver import LocalSaver
from train.checkpoint.restore import restore
from train.checkpoint.saver import Saver
from train.step import train_step
from train.storage.place import Place

CPU = nominal("cpu")
SMALL = _shaped(_shape(256, 6, 4), _shape(128, 2, 4), vocabulary=4096, sequence_tokens=128)


def _task(precision: Precision, *, lora: bool = False, local: bool = False) -> Task:
    tuning = Tuning(lora=LoraConfig(rank=8)) if lora else Tuning()
    return replace(SMALL, precision=precision, sequences=2, tuning=tuning, saves_nearby=local)


def _spread(stage: int, data: int, **layout: Any) -> Candidate:
    return Candidate(
        layout=LayoutConfig.model_validate({"split": [6]} | layout),
        data=data,
        stage=stage,
        micro_sequences=1,
        num_microbatches=2 // data,
    )


@contextlib.contextmanager
def _disks(place: Path) -> Generator[Disks]:
    """Each rank is a node."""
    node = f"node{dist.get_rank()}"
    os.environ["SLURMD_NODENAME"] = node
    try:
        config = LocalConfig(directory=str(place / node), every_steps=1)
        id_file = Place.of(place / "local.json")
        yield Disks(config, Place.of(place / node), label="run", id_file=id_file)
    finally:
        del os.environ["SLURMD_NODENAME"]


def _save(engine: ZeroEngine, place: Path, *, local: bool) -> None:
    if not local:
        with Saver(place, retention=Retention(keep=1)) as saver:
            saver.save(engine, {}, step=1)
        return
    with _disks(place) as disks, LocalSaver(disks) as saver:
        saver.save(engine, {}, step=1, waits=True)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(place / "node1")
    dist.barrier()


def _restore(engine: ZeroEngine, place: Path, *, local: bool) -> None:
    if not local:
        restore(place, engine)
        return
    with _disks(place) as disks:
        assert disks.home is not None
        step = next(whole_steps(disks.home, disks.nodes, at_least=1, remarks=[]))
        restore(step.path, engine, pieces=step)


def _peaks(place: Path, task: Task, writer: Candidate, reader: Candidate) -> int:
    """Most bytes of live tensors while what one engine has saved is restored into another."""
    mesh = build_mesh(writer.layout, World.here())
    engine = engine_of(task, writer, mesh)
    batches = cycle(batches_of(task, writer, mesh))
    train_step(engine, [next(batches) for _ in range(writer.num_microbatches)])
    _save(engine, place, local=task.saves_nearby)
    engine.close()
    del engine
    mesh = build_mesh(reader.layout, World.here())
    with metered() as building:
        engine = engine_of(task, reader, mesh)
    with metered() as restoring:
        _restore(engine, place, local=task.saves_nearby)
    engine.close()
    forget_groups()
    return building.live_bytes + restoring.peak_bytes


@pytest.fixture(scope="module")
def two_ranks() -> Generator[RankPool]:
    with RankPool(2, context=warm.context()) as pool:
        yield pool


long = pytest.mark.long


@pytest.mark.parametrize(
    ("job", "writer", "reader"),
    [
        (_task("fp32"), _spread(1, 2), None),
        (_task("bf16"), _spread(3, 2), None),
        (_task("fp32", local=True), _spread(1, 2), None),
        pytest.param(_task("fp32"), _spread(0, 2), None, marks=long),
        pytest.param(_task("fp32"), _spread(2, 2), None, marks=long),
        pytest.param(_task("fp32"), _spread(3, 2), None, marks=long),
        pytest.param(_task("bf16"), _spread(1, 2), None, marks=long),
        pytest.param(_task("bf16"), _spread(2, 2), None, marks=long),
        pytest.param(_task("bf16", local=True), _spread(3, 2), None, marks=long),
        # Adapters beside weights that are fixed.
        pytest.param(_task("bf16", lora=True), _spread(1, 2), None, marks=long),
        pytest.param(_task("bf16", lora=True), _spread(3, 2), None, marks=long),
        pytest.param(_task("fp32"), _spread(1, 1, tensor=2), None, marks=long),
        pytest.param(_task("fp32"), _spread(0, 1, pipeline=2, split=[3, 3]), None, marks=long),
        # What another layout has written.
        pytest.param(_task("fp32"), _spread(3, 2), _spread(0, 2), marks=long),
        pytest.param(_task("fp32"), _spread(1, 1, tensor=2), _spread(3, 2), marks=long),
    ],
)
def test_restoring_takes_what_is_predicted(
    two_ranks: RankPool,
    tmp_path: Path,
    job: Task,
    writer: Candidate,
    reader: Candidate | None,
) -> None:
    reader = reader or writer
    measured = max(two_ranks.run(_peaks, tmp_path, job, writer, reader))
    stages = range(reader.layout.pipeline)
    moments = [rank_moments(job, reader, CPU, pipeline_rank=stage) for stage in stages]
    predicted = max(each.restoring.total for each in moments)
    assert predicted == pytest.approx(measured, rel=MEMORY_TOLERANCE)


def test_what_trains_and_cannot_be_restored_is_told_in_a_sentence() -> None:
    """Blocks to and from other nodes are more than a tiny model's step."""
    tiny = _shaped(_shape(64, 6, 2), _shape(32, 2, 2), vocabulary=512, sequence_tokens=64)
    job = replace(tiny, sequences=2, saves_nearby=True)
    plan = one_plan(job, _spread(0, 1), CPU)
    training, start, restoring = (each.total for each in plan.moments)
    assert start < training < restoring == plan.memory.total
    room = (training + restoring) / 2
    given = CPU.memory_bytes / CPU.usable_bytes * room
    machine = CPU.model_copy(update={"memory_bytes": given})
    told = memory_fault(plan, machine)
    assert told is not None
    assert told.endswith(" to restore a checkpoint, and less to train: more ZeRO, or more ranks")
    plans = all_plans(job, machine, ranks=1)
    assert not plans.ranked
    assert any("to restore a checkpoint" in reason for reason in plans.refusals)
    without = one_plan(replace(job, saves_nearby=False), _spread(0, 1), machine)
    assert memory_fault(without, machine) is None
