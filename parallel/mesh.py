"""Process groups from (tensor, pipeline, data); the only module that touches megatron's state."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch.distributed as dist
from pydantic import Field

from model.config import Config
from model.decoder import Piece
from model.recompute import Recompute
from model.semicausal import ModelConfig
from parallel import cuda_free
from parallel.host import node_name
from parallel.launch import World
from parallel.megatron import core

Degree = Annotated[int, Field(ge=1, le=2**17)]


class LayoutConfig(Config):
    """How the model is spread; what is left of the ranks is data parallel."""

    tensor: Degree = 1
    """Ranks that share each layer, by heads and by vocabulary. They should be on one node."""
    pipeline: Degree = 1
    """Stages that hold consecutive layers."""
    sequence_parallel: bool = False
    """Whether a tensor group also shares the rows between its layers; saves memory."""
    chunks: Degree = 1
    """Pieces of the decoder on each stage. More than one is the interleaved schedule: a smaller
    bubble for more traffic."""
    split: list[Degree] | None = None
    """Decoder layers of each piece, in model order: piece p lies on stage p modulo `pipeline`.
    Default: what balances the stages, encoders and head counted."""
    recompute: Recompute = "none"
    """Activations that are computed again in the backward: none, attention's own (`selective`),
    or all but each block's input (`full`)."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Mesh:
    """This rank's place in (tensor, pipeline, data), and its groups.

    Ranks are numbered with tensor fastest, then pipeline, then data: those that work on one sample
    are neighbours.

    Attributes:
        world: this process among all.
        tensor_rank: place in the tensor group.
        tensor_size: ranks that share each layer.
        pipeline_rank: stage.
        pipeline_size: number of stages.
        data_rank: index of the model copy; ranks of one copy read the same samples.
        data_size: number of model copies.
        tensor_group: None if alone.
        data_group: ranks with the same share of the model.
        model_group: ranks of one model copy; None if alone.
        ends_group: first and last stage of this pipeline, on those two; else None.
    """

    world: World
    tensor_rank: int = 0
    tensor_size: int = 1
    pipeline_rank: int = 0
    pipeline_size: int = 1
    data_rank: int
    data_size: int
    tensor_group: dist.ProcessGroup | None = None
    data_group: dist.ProcessGroup | None = None
    model_group: dist.ProcessGroup | None = None
    ends_group: dist.ProcessGroup | None = None

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor_size * self.pipeline_size

    @property
    def model_rank(self) -> int:
        """Place among the ranks of one model copy."""
        return self.pipeline_rank * self.tensor_size + self.tensor_rank

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def speaks_for_sample(self) -> bool:
        """Whether this rank is the one of its model copy to count tokens and losses."""
        return self.is_last_stage and self.tensor_rank == 0


def build_mesh(layout: LayoutConfig, world: World) -> Mesh:
    """Makes the process groups; every rank must call it.

    Groups of an earlier call are destroyed.

    Raises:
        ValueError: the number of ranks is no multiple of tensor * pipeline.
    """
    fault = rank_fault(layout, ranks=world.size)
    if fault is not None:
        raise ValueError(fault)
    if layout.model_ranks == 1:
        return Mesh(world=world, data_rank=world.rank, data_size=world.size)
    cuda_free.install()
    forget_groups()
    state: Any = core("parallel_state")
    state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        order="tp-cp-ep-pp-dp",
        create_gloo_process_groups=False,
        distributed_timeout_minutes=math.ceil(world.timeout_seconds / 60),
    )
    pipeline_rank = state.get_pipeline_model_parallel_rank()
    is_end = layout.pipeline > 1 and pipeline_rank in (0, layout.pipeline - 1)
    return Mesh(
        world=world,
        tensor_rank=state.get_tensor_model_parallel_rank(),
        tensor_size=layout.tensor,
        pipeline_rank=pipeline_rank,
        pipeline_size=layout.pipeline,
        data_rank=state.get_data_parallel_rank(),
        data_size=state.get_data_parallel_world_size(),
        tensor_group=state.get_tensor_model_parallel_group() if layout.tensor > 1 else None,
        data_group=state.get_data_parallel_group(),
        model_group=state.get_model_parallel_group(),
        ends_group=state.get_embedding_group() if is_end else None,
    )


def forget_groups() -> None:
    """Destroys megatron's groups, if there are any; every rank must call it.

    There are dozens, and each keeps threads that wake a hundred times a second under gloo.
    """
    if "megatron.core.parallel_state" not in sys.modules:
        return
    state: Any = core("parallel_state")
    groups = state._global_process_group_list or []
    if state.is_initialized():
        dist.barrier()  # nobody is inside one of them
        state.destroy_model_parallel()
    for group in groups:
        if group is not None:  # the default one stays
            dist.destroy_process_group(group)


def held_pieces(split: tuple[int, ...], layout: LayoutConfig, *, pipeline_rank: int) -> list[Piece]:
    """The pieces of the decoder that a stage holds, in model order.

    Args:
        split: layers of each piece.
        layout: as configured.
        pipeline_rank: the stage.
    """
    assert len(split) == layout.pipeline * layout.chunks, (split, layout)
    starts = [sum(split[:index]) for index in range(len(split))]
    return [
        Piece(
            first_layer=starts[index],
            last_layer=starts[index] + split[index],
            is_first=index == 0,
            is_last=index == len(split) - 1,
        )
        for index in range(pipeline_rank, len(split), layout.pipeline)
    ]


def rank_fault(layout: LayoutConfig, *, ranks: int) -> str | None:
    """What is wrong with the number of ranks, None if nothing is."""
    if ranks % layout.model_ranks == 0:
        return None
    near = max(1, round(ranks / layout.model_ranks)) * layout.model_ranks
    return (
        f"layout: tensor {layout.tensor} x pipeline {layout.pipeline} needs a multiple of "
        f"{layout.model_ranks} ranks and there are {ranks}; start {near}, or change the layout"
    )


def tensor_sizes(model: ModelConfig) -> dict[str, int]:
    """Sizes that the tensor degree must divide, by key of the configuration."""
    sizes = {"model.decoder.heads": model.decoder.heads}
    if model.decoder.kv_heads is not None:
        sizes["model.decoder.kv_heads"] = model.decoder.kv_heads
    sizes["model.decoder.feed_forward"] = model.decoder.feed_forward
    for modality, part in model.encoders.items():
        for key, size in part.encoder.tensor_sizes().items():
            sizes[f"model.encoders.{modality}.encoder.{key}"] = size
        for key, size in part.connector.tensor_sizes(part.encoder).items():
            sizes[f"model.encoders.{modality}.connector.{key}"] = size
    return sizes


def undivided(model: ModelConfig, *, tensor: int) -> list[str]:
    """Sizes that a tensor degree does not divide, each with its key."""
    return [f"{name} {size}" for name, size in tensor_sizes(model).items() if size % tensor]


def layout_faults(layout: LayoutConfig, model: ModelConfig) -> Iterator[str]:
    """Reasons why this layout cannot split this model."""
    if found := undivided(model, tensor=layout.tensor):
        verb = "does" if len(found) == 1 else "do"
        yield (
            f"layout.tensor: {', '.join(found)} {verb} not divide by {layout.tensor}; use a degree "
            f"that divides all of {', '.join(f'{n} {s}' for n, s in tensor_sizes(model).items())}"
        )
    if layout.sequence_parallel and layout.tensor == 1:
        yield "layout.sequence_parallel: needs layout.tensor of at least 2, whose ranks share rows"
    if layout.chunks > 1 and layout.pipeline == 1:
        yield "layout.chunks: more than one needs layout.pipeline of at least 2"
    num_layers, num_pieces = model.decoder.num_layers, layout.pipeline * layout.chunks
    if num_pieces > num_layers:
        yield (
            f"layout.pipeline: {layout.pipeline} stages x {layout.chunks} chunks are more than the "
            f"decoder's {num_layers} layers"
        )
    elif layout.split is not None and len(layout.split) != num_pieces:
        yield (
            f"layout.split: names {len(layout.split)} pieces and there are {num_pieces} "
            f"(pipeline {layout.pipeline} x chunks {layout.chunks})"
        )
    elif layout.split is not None and sum(layout.split) != num_layers:
        yield (
            f"layout.split: {'+'.join(map(str, layout.split))} is {sum(layout.split)} layers and "
            f"the decoder has {num_layers}"
        )


def straddling_warning(mesh: Mesh) -> str | None:
    """A warning where a tensor group does not lie on one node; every rank must call it."""
    if mesh.tensor_group is None:
        return None
    nodes = [""] * mesh.tensor_size
    dist.all_gather_object(nodes, node_name(), group=mesh.tensor_group)
    if len(set(nodes)) == 1:
        return None
    return (
        f"layout.tensor: a group of {mesh.tensor_size} ranks straddles the nodes "
        f"{', '.join(sorted(set(nodes)))}: every layer will wait for the network between them; use "
        "a degree that divides the ranks of a node"
    )
