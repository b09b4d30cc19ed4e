"""What the tests of checkpoints share: saving, restoring and reading a toy's training state."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.region import Region
from parallel.zero.config import Precision
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import StateSlice
from tests.distributed.toy import Toy, engine_of, evaluate, train_step
from train.checkpoint.directory import Retention, latest, resolve
from train.checkpoint.format import Index
from train.checkpoint.reader import ChunkReader
from train.checkpoint.saver import Saver
from train.storage.place import Place

Steps = list[tuple[float, float]]
CONFIG = {"name": "toy", "model": {"width": 13, "depth": 1, "head": {"tied": True}}}


def state_of(step: int) -> dict[str, Any]:
    return {"config": CONFIG, "samples": 8 * step, "rate": 0.1 * step, "run_id": "ab12"}


def saver_of(directory: Place | Path, *, keep: int = 2, **options: Any) -> Saver:
    if "continues" not in options:
        options["continues"] = latest(directory)
    return Saver(directory, retention=Retention(keep=keep), **options)


def save_now(directory: Path, engine: ZeroEngine, *, step: int, keep: int = 2) -> Path:
    """One checkpoint, from a saver of its own."""
    with saver_of(directory, keep=keep) as saver:
        saver.save(engine, state_of(step), step=step)
        path = saver.finish()
    assert path is not None
    return Path(path)


def train_and_save(
    stage: int, precision: Precision, directory: Place | Path, num_steps: int, save_at: int
) -> tuple[Steps, list[float]]:
    """Trains from the beginning without a stop; losses, norms, evaluations after each step."""
    engine = engine_of(Toy(frozen=True), stage=stage, precision=precision)
    curve: Steps = []
    evaluations: list[float] = []
    with saver_of(directory, keep=1) as saver:
        for step in range(num_steps):
            curve.append(train_step(engine, step))
            evaluations.append(evaluate(engine))
            if step + 1 == save_at:
                # Training goes on while it is written.
                saver.save(engine, state_of(save_at), step=save_at)
    engine.close()
    return curve, evaluations


def save_steps(directory: Path, steps: list[int], options: dict[str, Any]) -> list[list[str]]:
    """Saves an untrained toy at steps; what lies in the directory after each."""
    engine = engine_of(Toy(), stage=0)
    names: list[list[str]] = []
    with Saver(directory, retention=Retention(**options)) as saver:
        for step in steps:
            saver.save(engine, state_of(step), step=step)
            saver.finish()
            names.append(sorted(path.name for path in directory.iterdir()))
    engine.close()
    return names


def tensors_of(place: Place | Path) -> dict[str, Tensor]:
    """Everything in a checkpoint, put together and flat."""
    path = resolve(place)
    index = Index.read(path)
    tensors: dict[str, Tensor] = {}
    with ChunkReader(path, index) as reader:
        for name, record in index.parameters.items():
            for kind in record.tensors:
                tensor = torch.full((record.num_elements,), math.nan)
                whole = Region.whole(tuple(record.shape))
                reader.fill(StateSlice(name=name, kind=kind, region=whole, tensor=tensor))
                tensors[f"{name}/{kind}"] = tensor
    return tensors
