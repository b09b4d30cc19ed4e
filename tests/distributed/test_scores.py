"""Answers in a layout against one process: dp2, tp2, pp2."""

import pytest
import torch

from model.reading import Reading
from parallel.engine import build_part
from parallel.forward import FrozenEngine
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh, build_mesh
from parallel.reading import reader
from tests.train.scores.models import MODEL, generations, likelihoods
from tools.ranks import RankPool
from train.errors import UserError
from train.scores.answers import Answer, Answers
from train.scores.request import Likelihood
from train.scores.scorer import Scorer

SEED = 3
LAYOUTS = {
    "dp2": LayoutConfig(),
    "tp2": LayoutConfig(tensor=2),
    "pp2": LayoutConfig(pipeline=2, split=[1, 1]),
}


def answers(layout: LayoutConfig, batch: int) -> tuple[list[list[Answer]], int]:
    """What this rank is told, and how many were computed."""
    world = World.here(torch.device("cpu"))
    mesh = build_mesh(layout, world)
    part = build_part(MODEL, layout, mesh, seed=SEED).eval()
    scorer = Scorer(
        reader(FrozenEngine(module=part, mesh=mesh), apart=True),
        mesh,
        weights="w",
        answers=Answers(None) if world.is_main else None,
        model=MODEL,
        batch=batch,
    )
    return scorer.ask([*likelihoods(), *generations()]), scorer.computed


@pytest.fixture(scope="module")
def alone() -> list[list[Answer]]:
    mesh = Mesh(world=World(rank=0, size=1, device=torch.device("cpu")), data_rank=0, data_size=1)
    part = build_part(MODEL, LayoutConfig(), mesh, seed=SEED).eval()
    read = reader(FrozenEngine(module=part, mesh=mesh))
    scorer = Scorer(read, mesh, weights="w", answers=Answers(None), model=MODEL, batch=1)
    return scorer.ask([*likelihoods(), *generations()])


@pytest.mark.parametrize("name", LAYOUTS)
def test_answers_equal_one_process(
    rank_pools: dict[int, RankPool], alone: list[list[Answer]], name: str
) -> None:
    (found, computed), (others, _) = rank_pools[2].run(answers, LAYOUTS[name], 4)
    assert others == []
    assert computed == sum(map(len, alone))
    for here, there in zip(found, alone, strict=True):
        for mine, theirs in zip(here, there, strict=True):
            if isinstance(mine, Likelihood) and isinstance(theirs, Likelihood):
                assert mine.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)
                assert mine.is_greedy == theirs.is_greedy
            else:
                assert mine == theirs


def refused() -> str:
    """What this rank hears when what the other copy of the model says is not finite."""
    world = World.here(torch.device("cpu"))
    mesh = build_mesh(LayoutConfig(), world)
    part = build_part(MODEL, LayoutConfig(), mesh, seed=SEED).eval()
    sound = reader(FrozenEngine(module=part, mesh=mesh), apart=True)

    def read(reading: Reading) -> torch.Tensor:
        return sound(reading) * (float("nan") if world.rank else 1.0)

    kept = Answers(None) if world.is_main else None
    scorer = Scorer(read, mesh, weights="w", answers=kept, model=MODEL, batch=4)
    try:
        scorer.ask(likelihoods())
    except UserError as error:
        return str(error)
    return ""


def test_what_one_copy_cannot_answer_all_hear_of(rank_pools: dict[int, RankPool]) -> None:
    for told in rank_pools[2].run(refused):
        assert "not finite: name another checkpoint (rank 1 of 2)" in told
