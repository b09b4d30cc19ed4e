"""Parameters of each rank equal those of the parts that ranks build."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from model.semicausal import ModelConfig, parameter_counts
from parallel.engine import build_part, parameter_groups
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh, forget_groups
from parallel.zero.gradients import tied_over_stages
from tools.plan.weights import Weights

DECODER = {
    "vocabulary": 1000,
    "width": 64,
    "num_layers": 6,
    "heads": 8,
    "feed_forward": 256,
    "max_tokens": 32,
}
ENCODER = {"width": 32, "num_layers": 4, "heads": 4, "feed_forward": 64, "max_tokens": 20}


def config(
    *, encoder: dict[str, Any] | None = None, connector: str = "linear", **decoder: Any
) -> ModelConfig:
    encoders: dict[str, Any] = {}
    if encoder is not None:
        encoders["text"] = {"encoder": ENCODER | encoder, "connector": {"kind": connector}}
    return ModelConfig.model_validate({"decoder": DECODER | decoder, "encoders": encoders})


PLAIN = config(encoder={})
LAYOUTS = [
    (PLAIN, {}, (6,)),
    (PLAIN, {"tensor": 2}, (6,)),
    (PLAIN, {"tensor": 4, "sequence_parallel": True}, (6,)),
    (PLAIN, {"pipeline": 2}, (2, 4)),
    (PLAIN, {"pipeline": 2, "chunks": 2}, (1, 2, 2, 1)),
    (PLAIN, {"tensor": 2, "pipeline": 2}, (3, 3)),
    (PLAIN, {"tensor": 4, "pipeline": 3}, (1, 3, 2)),
    (config(encoder={}, tied_head=False), {"tensor": 2, "pipeline": 2}, (2, 4)),
    (config(encoder={}, tied_head=False, norm="pre"), {"tensor": 2}, (6,)),
    (config(norm="pre"), {"tensor": 2, "pipeline": 3}, (2, 2, 2)),
    (config(encoder={"init_from": "there"}, connector="mlp"), {"tensor": 2}, (6,)),
    (config(encoder={"heads": 8}, vocabulary=600), {"tensor": 8}, (6,)),
]


@pytest.fixture(autouse=True)
def _one_group_a_test() -> Iterator[None]:
    yield
    forget_groups()
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(("model", "keys", "split"), LAYOUTS, ids=range(len(LAYOUTS)))
def test_counts_equal_those_of_real_models(
    model: ModelConfig, keys: dict[str, Any], split: tuple[int, ...]
) -> None:
    layout = LayoutConfig.model_validate(keys | {"split": list(split)})
    weights = Weights(model)
    for rank in range(layout.model_ranks):
        largest_group, parameters = _real(model, layout, split, rank=rank)
        share = weights.share(layout, rank // layout.tensor)
        assert share.elements == sum(p.numel() for p in parameters)
        assert share.trained == sum(p.numel() for p in parameters if p.requires_grad)
        assert share.largest == max(p.numel() for p in parameters if p.requires_grad)
        assert share.largest_group == largest_group


def test_a_whole_model_counts_as_the_model_does() -> None:
    share = Weights(PLAIN).share(LayoutConfig(split=[6]), 0)
    assert share.elements == sum(parameter_counts(PLAIN).values())


def _real(
    model: ModelConfig, layout: LayoutConfig, split: tuple[int, ...], *, rank: int
) -> tuple[int, list[torch.nn.Parameter]]:
    """Parameters of a rank's real model, and elements of the optimiser's largest group."""
    ranks = layout.model_ranks
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    world = World(rank=rank, size=ranks, device=torch.device("cpu"))
    with torch.device("meta"):
        mesh = build_mesh(layout, world)
        layout = layout.model_copy(update={"split": list(split)})
        part = build_part(model, layout, mesh, seed=None)
        groups = parameter_groups(part, weight_decay=0.1, apart=tied_over_stages(part, mesh))
    forget_groups()
    dist.destroy_process_group()
    largest = max(sum(p.numel() for p in group["params"]) for group in groups)
    return largest, list(part.parameters())
