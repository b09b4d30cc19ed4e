"""Squares of gradients, and which weight two stages share."""

import pytest
import torch

from model.decoder import TIED_NAME
from model.semicausal import SemiCausal
from parallel.engine import build_part
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh
from parallel.zero import gradients
from parallel.zero.gradients import tied_over_stages
from tests.distributed.semicausal_runs import Cell, model_config


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (1000,)])
def test_squares_are_summed_in_fp64(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(gradients, "NORM_CHUNK_ELEMENTS", 4)
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = value.double().square().sum().item()
    square = gradients._square(value)
    assert square.dtype == torch.float64
    assert square.item() == pytest.approx(expected, rel=1e-12)


def test_many_small_elements_are_not_lost() -> None:
    """Where fp32 sums are off: a large element first, then millions too small to be added to it."""
    value = torch.full((1 << 21,), 1e-3)
    value[0] = 1e3
    expected = value.double().square().sum().item()
    assert gradients._square(value).item() == pytest.approx(expected, rel=1e-10)


def test_bad_values_stay_bad() -> None:
    for bad in (float("nan"), float("inf")):
        value = torch.ones(5)
        value[2] = bad
        assert not gradients._square(value).isfinite()


def _stage(rank: int, *, tied: bool, ends: object) -> tuple[SemiCausal, Mesh]:
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    mesh = Mesh(
        world=world,
        pipeline_rank=rank,
        pipeline_size=2,
        data_rank=0,
        data_size=1,
        ends_group=ends,  # pyright: ignore[reportArgumentType]  # never talked over here
    )
    with torch.device("meta"):
        layout = LayoutConfig(pipeline=2, split=[2, 3])
        model = build_part(model_config(Cell(tied=tied)), layout, mesh, seed=None)
    return model, mesh


def test_both_ends_of_a_pipeline_know_the_tied_weight() -> None:
    for rank in (0, 1):
        model, mesh = _stage(rank, tied=True, ends=object())
        weight = tied_over_stages(model, mesh)
        assert weight is not None
        found = dict(model.named_parameters())
        assert weight is found[TIED_NAME if rank == 0 else "decoder.head.weight"]


def test_nothing_is_tied_without_two_ends() -> None:
    for rank in (0, 1):
        assert tied_over_stages(*_stage(rank, tied=False, ends=object())) is None
        assert tied_over_stages(*_stage(rank, tied=True, ends=None)) is None
