"""Layouts by arithmetic alone: pieces of stages, and what is said of layouts that cannot be."""

from typing import Any

import pytest
import torch

from model.decoder import Piece
from model.semicausal import ModelConfig
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh, build_mesh, held_pieces, layout_faults, rank_fault


def model(**decoder: Any) -> ModelConfig:
    shape = {"vocabulary": 97, "width": 24, "num_layers": 5, "heads": 6, "feed_forward": 36}
    encoder = {"width": 16, "num_layers": 2, "heads": 4, "feed_forward": 32, "max_tokens": 24}
    return ModelConfig.model_validate(
        {
            "decoder": shape | {"max_tokens": 48} | decoder,
            "encoders": {"text": {"encoder": encoder}},
        }
    )


def faults(model_config: ModelConfig, **layout: Any) -> list[str]:
    return list(layout_faults(LayoutConfig.model_validate(layout), model_config))


def test_pieces_go_round_the_stages() -> None:
    layout = LayoutConfig(pipeline=2, chunks=2)
    assert held_pieces((1, 2, 3, 4), layout, pipeline_rank=0) == [
        Piece(first_layer=0, last_layer=1, is_first=True, is_last=False),
        Piece(first_layer=3, last_layer=6, is_first=False, is_last=False),
    ]
    assert held_pieces((1, 2, 3, 4), layout, pipeline_rank=1) == [
        Piece(first_layer=1, last_layer=3, is_first=False, is_last=False),
        Piece(first_layer=6, last_layer=10, is_first=False, is_last=True),
    ]


@pytest.mark.parametrize(("pipeline", "chunks"), [(1, 1), (2, 1), (4, 1), (2, 3), (3, 2)])
def test_pieces_hold_every_layer_once(pipeline: int, chunks: int) -> None:
    split = tuple(range(1, pipeline * chunks + 1))
    layout = LayoutConfig(pipeline=pipeline, chunks=chunks)
    pieces = [
        piece
        for rank in range(pipeline)
        for piece in held_pieces(split, layout, pipeline_rank=rank)
    ]
    layers = sorted(i for piece in pieces for i in range(piece.first_layer, piece.last_layer))
    assert layers == list(range(sum(split)))
    assert sum(piece.is_first for piece in pieces) == sum(piece.is_last for piece in pieces) == 1


def test_ranks_must_make_whole_models() -> None:
    layout = LayoutConfig(tensor=2, pipeline=3)
    assert rank_fault(layout, ranks=6) is None
    assert rank_fault(layout, ranks=12) is None
    assert rank_fault(layout, ranks=8) == (
        "layout: tensor 2 x pipeline 3 needs a multiple of 6 ranks and there are 8; start 6, or "
        "change the layout"
    )
    assert "start 6" in str(rank_fault(layout, ranks=1))
    assert "start 12" in str(rank_fault(layout, ranks=11))


def test_mesh_of_impossible_ranks_is_refused() -> None:
    world = World(rank=0, size=3, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="needs a multiple of 2 ranks and there are 3"):
        build_mesh(LayoutConfig(tensor=2), world)


def test_possible_layouts_have_no_faults() -> None:
    for layout in (
        {},
        {"tensor": 2, "sequence_parallel": True},
        {"pipeline": 5},
        {"pipeline": 2, "chunks": 2, "split": [1, 1, 2, 1]},
        {"tensor": 2, "pipeline": 2, "split": [1, 4]},
    ):
        assert faults(model(), **layout) == []


def test_what_does_not_divide_is_named_with_all_sizes() -> None:
    found = faults(model(), tensor=4)
    assert found == [
        "layout.tensor: model.decoder.heads 6 does not divide by 4; use a degree that divides "
        "all of model.decoder.heads 6, model.decoder.feed_forward 36, "
        "model.encoders.text.encoder.heads 4, model.encoders.text.encoder.feed_forward 32"
    ]
    (fault,) = faults(model(feed_forward=35), tensor=3)
    assert fault.startswith(
        "layout.tensor: model.decoder.feed_forward 35, model.encoders.text.encoder.heads 4, "
        "model.encoders.text.encoder.feed_forward 32 do not divide by 3; "
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            {"sequence_parallel": True},
            "layout.sequence_parallel: needs layout.tensor of at least 2, whose ranks share rows",
        ),
        ({"chunks": 2}, "layout.chunks: more than one needs layout.pipeline of at least 2"),
        (
            {"pipeline": 3, "chunks": 2},
            "layout.pipeline: 3 stages x 2 chunks are more than the decoder's 5 layers",
        ),
        (
            {"pipeline": 2, "split": [1, 2, 2]},
            "layout.split: names 3 pieces and there are 2 (pipeline 2 x chunks 1)",
        ),
        (
            {"pipeline": 2, "split": [1, 2]},
            "layout.split: 1+2 is 3 layers and the decoder has 5",
        ),
    ],
)
def test_faults_say_what_to_change(layout: dict[str, Any], message: str) -> None:
    assert faults(model(), **layout) == [message]


def test_places_in_a_mesh() -> None:
    world = World(rank=5, size=8, device=torch.device("cpu"))
    places: dict[str, Any] = {
        "tensor_size": 2, "pipeline_size": 2, "data_rank": 1, "data_size": 2
    }  # fmt: skip
    meshes = [
        Mesh(world=world, pipeline_rank=stage, tensor_rank=tensor, **places)
        for stage in range(2)
        for tensor in range(2)
    ]
    assert [mesh.model_rank for mesh in meshes] == [0, 1, 2, 3]
    assert {mesh.model_size for mesh in meshes} == {4}
    assert [mesh.is_last_stage for mesh in meshes] == [False, False, True, True]
    assert [mesh.speaks_for_sample for mesh in meshes] == [False, False, True, False]
