"""Squares of gradients, and which weight two stages share."""

import pytest
import torch
from torch import nn

from model.decoder import TIED_NAME
from model.semicausal import SemiCausal
from parallel.engine import build_part
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh
from parallel.zero import gradients
from parallel.zero.gradients import Gradient, Weights, tied_over_stages
from tests.distributed.semicausal_runs import Cell, model_config


def _square(*values: torch.Tensor) -> torch.Tensor:
    held = [
        Gradient(
            parameter=nn.Parameter(value),
            value=value,
            part="decoder.norm",
            is_tied=False,
            is_copy=False,
            num_copies=1,
        )
        for value in values
    ]
    weights = Weights(["decoder.norm"], torch.device("cpu"))
    spoken, mean, of_part = gradients.squares(held, weights.of(held))
    assert torch.equal(spoken, of_part) or not spoken.isfinite()
    assert torch.equal(spoken, mean) or not spoken.isfinite()
    return spoken


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (1000,)])
def test_squares_are_summed_in_fp64(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = value.double().square().sum().item()
    for chunk in (4, 1 << 24):
        monkeypatch.setattr(gradients, "NORM_CHUNK_ELEMENTS", chunk)
        square = _square(value, value.T if value.dim() > 1 else value)
        assert square.dtype == torch.float64
        assert square.item() == pytest.approx(2 * expected, rel=1e-12)


def test_many_small_elements_are_not_lost() -> None:
    """Where fp32 sums are off: a large element first, then millions too small to be added to it."""
    value = torch.full((1 << 21,), 1e-3)
    value[0] = 1e3
    expected = value.double().square().sum().item()
    assert _square(value).item() == pytest.approx(expected, rel=1e-10)


def test_fp32_norms_of_a_gpu_are_close_for_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lever's numbers on a CPU, whose fp32 norms are good enough below 10^5 elements."""
    foreach_norm = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]
    values = [torch.randn(size) for size in (1, 999, 90_000)]
    exact = _square(*values).item()
    monkeypatch.setattr(torch, "_foreach_norm", lambda given, order, dtype: foreach_norm(given, 2))
    rounded = _square(*values).item()
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=2e-6)


def test_a_rank_without_a_gradient_counts_for_nothing() -> None:
    assert _square().item() == 0


def test_copies_count_once_and_share() -> None:
    value = torch.tensor([3.0, 4.0])
    held = [
        Gradient(
            parameter=nn.Parameter(value),
            value=value,
            part=part,
            is_tied=False,
            is_copy=copy,
            num_copies=num,
        )
        for part, copy, num in (("a", False, 1), ("a", True, 2), ("b", False, 5))
    ]
    weights = Weights(["b", "elsewhere", "a"], torch.device("cpu"))
    kept = weights.of(held)
    assert gradients.squares(held, kept).tolist() == pytest.approx([50, 25 * 1.7, 25, 0, 25])
    assert weights.of(held) is kept
    assert gradients.squares(held[:1], weights.of(held[:1])).tolist() == [25, 25, 0, 0, 25]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("decoder.blocks.11.attention.qkv.weight", "decoder.blocks.11"),
        ("encoders.text.encoder.blocks.0.norm.bias", "encoders.text.encoder.blocks.0"),
        ("decoder.embedding.weight", "decoder.embedding"),
        ("connectors.text.0.weight", "connectors.text.0"),
        ("scale", "scale"),
    ],
)
def test_parts_are_blocks_and_layers_outside_of_them(name: str, part: str) -> None:
    assert gradients.part_of(name) == part


def test_bad_values_stay_bad() -> None:
    for bad in (float("nan"), float("inf")):
        value = torch.ones(5)
        value[2] = bad
        assert not _square(torch.ones(3), value).isfinite()


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
