"""What the tests of checkpoints on nodes' own disks share: toys that save there, and are found."""

import contextlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.agreement import gathered
from parallel.zero.state import local_slices
from tests.distributed.checkpoint.runs import state_of
from tests.distributed.toy import Toy, engine_of, evaluate, train_step
from train.checkpoint.local.config import LocalConfig
from train.checkpoint.local.disks import Disks
from train.checkpoint.local.finding import whole_steps
from train.checkpoint.local.saver import LocalSaver
from train.checkpoint.restore import restore
from train.errors import LocalCheckpointError
from train.storage.place import Place

Found = tuple[int | None, float, list[str]]
"""Step that was restored, loss of a fixed batch after it, what was remarked."""


@contextlib.contextmanager
def on_nodes(names: list[str]) -> Generator[str]:
    """Each rank is on the node of its number; the name of its own."""
    name = names[dist.get_rank()]
    os.environ["SLURMD_NODENAME"] = name
    try:
        yield name
    finally:
        del os.environ["SLURMD_NODENAME"]


def disks_of(
    place: Path, names: list[str], copies: int, *, shared: bool = False, label: str = "toy run"
) -> Disks:
    directory = place / ("shared" if shared else names[dist.get_rank()])
    config = LocalConfig(directory=str(directory), every_steps=1, copies=copies)
    id_file = Place.of(place / "local.json")
    return Disks(config, Place.of(directory), label=label, id_file=id_file)


def save_steps_nearby(
    place: Path, names: list[str], copies: int, stage: int, steps: int
) -> list[float]:
    """Trains a toy and saves each step; its losses after each."""
    losses: list[float] = []
    with on_nodes(names):
        engine = engine_of(Toy(frozen=True), stage=stage)
        with LocalSaver(disks_of(place, names, copies)) as saver:
            for step in range(1, steps + 1):
                train_step(engine, step)
                # Some of it only the first rank knows.
                state = {**state_of(step), "run_id": f"of rank {dist.get_rank()}"}
                assert saver.save(engine, state, step=step, waits=True) is None
                losses.append(evaluate(engine))
            assert saver.settle() is not None
    engine.close()
    return losses


def find_and_restore(
    place: Path, names: list[str], copies: int, stage: int, at_least: int = 0
) -> Found:
    """Restores the newest whole step into another toy."""
    with on_nodes(names):
        disks = disks_of(place, names, copies)
        assert disks.home is not None
        remarks: list[str] = disks.remarks
        engine = engine_of(Toy(frozen=True), stage=stage)
        for part in local_slices(engine):
            part.tensor.fill_(torch.nan)
        steps = whole_steps(disks.home, disks.nodes, at_least=at_least, remarks=remarks)
        step, loss = None, 0.0
        for found in steps:
            try:
                step = restore(found.path, engine, pieces=found).step
            except LocalCheckpointError as error:
                remarks.append(str(error))
                continue
            loss = evaluate(engine)
            break
        engine.close()
        return step, loss, gathered(remarks)[0]


def home_of(place: Path, node: str) -> Path:
    (home,) = (place / node).glob("toy_run-*")
    return home


def moved(saved: Path, to: Path) -> Path:
    """What was saved, as if its directory had been moved: nothing is there any more."""
    place = Path(shutil.copytree(saved, to / "place"))
    kept = place / "local.json"
    kept.write_text(kept.read_text().replace(str(saved), str(to / "gone")))
    return place


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


TWO = ["a", "b"]
CHUNKS = "chunks-00000.safetensors"
