"""Checkpoints on the nodes' own disks: restored beside a store, and what saving costs a step.

Two ranks are two nodes, with a directory each on one disk. The store is an S3 server on this very
machine, so that no network stands between; nothing is cached by the system when reading begins.
"""

import itertools
import os
import shutil
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch.distributed as dist

from parallel.agreement import gathered
from parallel.zero.engine import ZeroEngine
from tools.bench.checkpointing import (
    MOST_ROUNDS,
    Turn,
    drop_cache,
    engine_of_bytes,
    remove,
    slowest_of,
    timed,
)
from tools.bench.rounds import Findings, contestants, ratio, spread, turns
from tools.bench.shapes import RATIO, Plan
from tools.bench.training import build, engine_of, engine_step, num_parameters
from tools.lab import s3
from tools.ranks import changed_environment
from train.checkpoint.directory import Retention
from train.checkpoint.local.config import LocalConfig
from train.checkpoint.local.disks import Disks
from train.checkpoint.local.finding import whole_steps
from train.checkpoint.local.saver import LocalSaver
from train.checkpoint.restore import restore
from train.checkpoint.saver import Saver
from train.storage.place import Place

BUCKET = "bench"


def against_a_store(plan: Plan) -> Findings:
    """Restores in turns, then trains with a save at every step; every rank must call it."""
    found = Findings(settings={"state_bytes": plan.state_bytes, "ranks": dist.get_world_size()})
    made = None if dist.get_rank() else tempfile.mkdtemp(prefix="local-disks-")
    place = Path(str(gathered(made)[0]))
    with ExitStack() as exits:
        exits.callback(remove, place)
        exits.enter_context(changed_environment({"SLURMD_NODENAME": f"node{dist.get_rank()}"}))
        _restore(found, place, plan)
        _save(found, place, plan)
    return found


def _disks(place: Path) -> Disks:
    directory = place / os.environ["SLURMD_NODENAME"]
    config = LocalConfig(directory=str(directory), every_steps=1)
    id_file = Place.of(place / "local.json")
    return Disks(config, Place.of(directory), label="bench", id_file=id_file)


def _restore(found: Findings, place: Path, plan: Plan) -> None:
    """From the own disks, from the other node's copies, from the store."""
    with ExitStack() as exits:
        variables: dict[str, str] = {}
        if dist.get_rank() == 0:
            exits.callback(s3.down, place / "s3")
            variables = dict(s3.up(place / "s3", bucket=BUCKET).environment)
        exits.enter_context(changed_environment(gathered(variables)[0]))
        engine = engine_of_bytes(plan.state_bytes)
        stored = Place.parse(f"s3://{BUCKET}/checkpoints")
        with Saver(stored, retention=Retention(keep=1)) as saver:
            saver.save(engine, {}, step=1)
            checkpoint = saver.finish()
        disks = _disks(place)
        with LocalSaver(disks) as local:
            local.save(engine, {}, step=1, waits=True)
            assert local.settle() is not None
        seconds: dict[str, list[float]] = {}
        rounds = min(plan.heavy.rounds, MOST_ROUNDS)
        for turn in turns(_readers(engine, disks, checkpoint, place), rounds + 1):
            drop_cache(place)
            for name, taken in turn().items():
                seconds.setdefault(name, []).append(taken)
            dist.barrier()
        engine.close()
    slowest = {name: slowest_of(taken[1:]) for name, taken in seconds.items()}
    found.settings["seconds"] = {n: round(spread(s).median, 4) for n, s in slowest.items()}
    found.ratios |= {
        "restore_local_vs_s3": ratio(slowest["own disk"], slowest["store"]),
        "restore_copies_vs_s3": ratio(slowest["copies"], slowest["store"]),
    }
    remove(place / "node0")
    remove(place / "node1")


def _readers(engine: ZeroEngine, disks: Disks, checkpoint: Place, place: Path) -> list[Turn]:
    def read() -> None:
        assert disks.home is not None
        step = next(whole_steps(disks.home, disks.nodes, at_least=0, remarks=[]))
        restore(step.path, engine, pieces=step)

    def own() -> dict[str, float]:
        return {"own disk": timed(read)}

    def copies() -> dict[str, float]:
        # The second node is a new one; it is given everything for the turns that follow.
        kept, lost = place / "kept", place / "node1"
        if dist.get_rank() == 1:
            lost.rename(kept)
        dist.barrier()
        taken = timed(read)
        dist.barrier()
        if dist.get_rank() == 1:
            shutil.rmtree(lost)
            kept.rename(lost)
        return {"copies": taken}

    def store() -> dict[str, float]:
        return {"store": timed(lambda: restore(checkpoint, engine))}

    return [own, copies, store]


def _save(found: Findings, place: Path, plan: Plan) -> None:
    """What a save holds a step up, and what its writing takes of the processors."""
    shape = plan.ranks
    config = shape.semi_causal()
    model = build(config)
    parameters = num_parameters(model)
    engine = engine_of(model, stage=1, precision="fp32")
    train = engine_step(engine, shape.batches(ratio=RATIO, count=2))
    steps = itertools.count(1)
    blocked: list[float] = []
    with LocalSaver(_disks(place)) as saver:

        def saving() -> None:
            save = partial(saver.save, engine, {}, step=next(steps), waits=True)
            blocked.append(timed(save))
            train()  # while it is written
            saver.settle()

        seconds = found.compare(
            contestants(
                {"a save at every step": saving, "none": train},
                tokens=shape.tokens * dist.get_world_size(),
                parameters=parameters,
                precision="fp32",
            ),
            plan.heavy,
            {"local_save_every_step": ("a save at every step", "none")},
        )
    engine.close()
    counted = slowest_of(blocked[-len(seconds["none"]) :])
    found.settings["state_bytes_of_step"] = 12 * parameters
    found.ratios["local_save_vs_step"] = ratio(counted, seconds["none"])
