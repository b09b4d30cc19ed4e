"""Steps of the model with both modalities: in one process, and on ranks in any layout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.batch import Batch
from model.semicausal import SemiCausal
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from tests.distributed import semicausal_runs
from tests.distributed.modality.kinds import RunConfig
from tests.distributed.modality.spans import Illustrated
from tests.distributed.semicausal_runs import History
from train.build import build_collator, build_engine, build_model
from train.config_files import load
from train.data.tokens import SpecialTokens
from train.step import reseed, train_step

SLOTS = 48


def configured(overrides: Sequence[str]) -> RunConfig:
    return load(RunConfig, [str(Path(__file__).parent / "patches.yaml"), *overrides])


def sample(number: int) -> Illustrated:
    """Text, behind a picture in every other sample of the first half: of two ranks one has none."""
    random = np.random.default_rng(number)
    num_tokens = SLOTS + 1 if number % 3 else SLOTS // 2
    num_patches = 2 + number % 5 if number % 8 in (0, 2) else 0
    # The first token after it is predicted from its last vector, and itself it is no target.
    scored = np.ones(num_tokens, dtype=np.bool_)
    scored[1 : 1 + num_patches] = False
    return Illustrated(
        id=number,
        tokens=random.integers(4, 97, num_tokens),
        scored=scored,
        documents=np.array([[1 + num_patches, num_tokens]]),
        at=1,
        picture=random.integers(256, size=(num_patches, 12), dtype=np.uint8)
        if num_patches
        else None,
    )


def batches(config: RunConfig, step: int, *, rank: int = 0, ranks: int = 1) -> list[Batch]:
    collate = build_collator(config, SpecialTokens())
    count = config.batch.sequences
    mine = [(0, sample(step * count + i)) for i in range(count)][rank * count // ranks :]
    return [
        collate(mine[i : i + config.micro_sequences])
        for i in range(0, count // ranks, config.micro_sequences)
    ]


def in_one_process(overrides: Sequence[str]) -> History:
    config = configured([*overrides, "batch.micro_sequences=8"])
    model = build_model(config, build_mesh(LayoutConfig(), World.here(torch.device("cpu"))))
    assert isinstance(model, SemiCausal)
    return semicausal_runs.plain_steps(
        model, (batches(config, step)[0] for step in range(config.steps))
    )


def on_ranks(overrides: Sequence[str]) -> History:
    """The same on this process group."""
    config = configured(overrides)
    mesh = build_mesh(config.layout, World.here(torch.device("cpu")))
    engine = build_engine(config, build_model(config, mesh), mesh)
    history: History = []
    for step in range(config.steps):
        reseed(7, step=step, mesh=mesh)
        mine = batches(config, step, rank=mesh.data_rank, ranks=mesh.data_size)
        result = train_step(engine, mine)
        history.append((result.averages.loss, result.gradient_norm))
    engine.close()
    return history
