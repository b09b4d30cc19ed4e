"""Splits and parts of a model, without any rank but this one."""

from functools import partial

import pytest
import torch

from model.layers import logical_name
from model.semicausal import ModelConfig, SemiCausal
from parallel.engine import build_part
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh
from parallel.split import with_split
from tests.distributed.semicausal_runs import Cell, model_config

LAYOUT = LayoutConfig(pipeline=2, chunks=2, split=[1, 2, 1, 1])


def stage(config: ModelConfig, rank: int) -> SemiCausal:
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    mesh = Mesh(world=world, pipeline_rank=rank, pipeline_size=2, data_rank=0, data_size=1)
    with torch.device("meta"):
        return build_part(config, LAYOUT, mesh, seed=None)


def names(model: SemiCausal) -> list[str]:
    return [logical_name(name, parameter) for name, parameter in model.named_parameters()]


def test_split_is_as_configured_or_balanced() -> None:
    config = model_config(Cell())
    settled = partial(with_split, config=config, sequence_tokens=48, span_share=0.25)
    assert settled(LAYOUT) == LAYOUT
    balanced = settled(LAYOUT.model_copy(update={"split": None})).split
    assert balanced is not None
    assert len(balanced) == 4
    assert sum(balanced) == config.decoder.num_layers
    with pytest.raises(ValueError, match="5 layers cannot be split over 6 stages"):
        settled(LayoutConfig(pipeline=6))


@pytest.mark.parametrize("tied", [True, False])
def test_stages_hold_the_model_once(tied: bool) -> None:
    config = model_config(Cell(tied=tied, norm="pre"))
    with torch.device("meta"):
        whole = SemiCausal(config)
    first, last = stage(config, 0), stage(config, 1)
    assert {n.split(".")[2] for n in names(first) if "decoder.blocks" in n} == {"0", "3"}
    assert {n.split(".")[2] for n in names(last) if "decoder.blocks" in n} == {"1", "2", "4"}
    held = names(first) + names(last)
    shared = {name for name in held if held.count(name) > 1}
    assert shared == ({"decoder.embedding.weight"} if tied else set())
    assert set(held) == set(names(whole))
    assert "decoder.final_norm.weight" in names(last)
    assert any(name.startswith("encoders.") for name in names(first))
    assert not any(name.startswith(("encoders.", "connectors.")) for name in names(last))


def test_frozen_layers_stay_frozen_on_their_stage() -> None:
    config = model_config(Cell(frozen=True))
    with torch.device("meta"):
        whole = SemiCausal(config)
    fixed = {name for name, p in whole.named_parameters() if not p.requires_grad}
    assert any("encoders.text.blocks.0" in name for name in fixed)
    first = stage(config, 0)
    assert {name for name, p in first.named_parameters() if not p.requires_grad} == fixed
    assert all(p.requires_grad for p in stage(config, 1).parameters())


def test_depth_constants_are_those_of_the_whole_model() -> None:
    config = model_config(Cell())
    with torch.device("meta"):
        whole = SemiCausal(config)
    for part in (stage(config, 0), stage(config, 1)):
        for index, block in part.decoder.blocks.items():
            assert block.alpha == whole.decoder.blocks[index].alpha
