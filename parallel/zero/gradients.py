"""Gradients as ZeRO holds them after the last backward: summed where shared, and their norm.

Called between the last backward of a step and the optimiser, when each rank holds the reduced
gradient of its share of its stage's parameters.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from model.decoder import TIED_NAME
from model.layers import is_split, logical_name
from parallel.mesh import Mesh
from parallel.zero.config import Sharding

if TYPE_CHECKING:
    from parallel.zero.engine import ZeroEngine

AGREEMENT = 1e-4
"""Relative difference of squared norms above which copies of a gradient count as different."""

NORM_CHUNK_ELEMENTS = 1 << 24
"""128 MiB in fp64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradient:
    """What this rank holds of one parameter's gradient.

    Attributes:
        parameter: whose gradient it is.
        value: all of it or a part; writing changes what the optimiser reads.
        is_tied: the same weight is on the other end of the pipeline.
        is_copy: another rank holds the same elements and speaks for them.
        num_copies: ranks that hold the same elements.
    """

    parameter: nn.Parameter
    value: Tensor
    is_tied: bool
    is_copy: bool
    num_copies: int


def tied_over_stages(module: nn.Module, mesh: Mesh) -> nn.Parameter | None:
    """The token embedding where the other end of the pipeline has it too, as its head."""
    if mesh.ends_group is None or not getattr(module, "has_tied_ends", False):
        return None
    named = module.named_parameters()
    return next(p for name, p in named if logical_name(name, p) == TIED_NAME)


def collect(engine: "ZeroEngine") -> list[Gradient]:
    """This rank's reduced gradients, in the order of the optimiser's parameters."""
    mesh = engine.mesh
    tied = tied_over_stages(engine.module, mesh)
    is_whole, pairs = _held(engine)
    gradients: list[Gradient] = []
    for parameter, value in pairs:
        num_copies, is_copy = 1, False
        if not is_split(parameter):
            num_copies *= mesh.tensor_size
            is_copy |= mesh.tensor_rank > 0
        if parameter is tied:
            num_copies *= 2
            is_copy |= mesh.is_last_stage
        if is_whole:
            num_copies *= mesh.data_size
            is_copy |= mesh.data_rank > 0
        gradients.append(
            Gradient(
                parameter=parameter,
                value=value,
                is_tied=parameter is tied,
                is_copy=is_copy,
                num_copies=num_copies,
            )
        )
    return gradients


def sum_shared(gradients: list[Gradient], mesh: Mesh) -> None:
    """Sums gradients of which other ranks have their own part; every rank must call it.

    With sequence parallelism each rank of a tensor group has the part of its rows; a tied
    embedding has a part from either end of the pipeline.
    """
    for gradient in gradients:
        if gradient.is_tied:
            dist.all_reduce(gradient.value, group=mesh.ends_group)
    partial = [g.value for g in gradients if getattr(g.parameter, "sequence_parallel", False)]
    if partial:
        flat = _flatten_dense_tensors(partial)
        dist.all_reduce(flat, group=mesh.tensor_group)
        for value, total in zip(partial, _unflatten_dense_tensors(flat, partial), strict=True):
            value.copy_(total)


def global_norm(gradients: list[Gradient], mesh: Mesh) -> float:
    """L2 norm of the whole model's gradient, each element counted once; every rank must call it.

    In fp64: torch's fp32 norm on CPU is off by 3e-5 at two million elements.

    Raises:
        RuntimeError: copies of a gradient differ between ranks.
    """
    squares = torch.zeros(2, dtype=torch.float64, device=mesh.world.device)
    for gradient in gradients:
        square = _square(gradient.value)
        # Summed over ranks: the elements of those who speak for them, and the mean over copies.
        if not gradient.is_copy:
            squares[0] += square
        squares[1] += square / gradient.num_copies
    dist.all_reduce(squares)
    spoken, mean = squares.tolist()
    if not math.isfinite(mean):
        # Of one copy alone it may be, which another rank speaks for.
        return mean
    if abs(spoken - mean) > AGREEMENT * spoken:
        raise RuntimeError(
            f"ranks that should hold the same gradient do not: its squared norm is {spoken:.9g} "
            f"on those that speak for it and {mean:.9g} on the average; this is a fault of the "
            "layout, nothing was stepped"
        )
    return math.sqrt(spoken)


def _square(value: Tensor) -> Tensor:
    """Sum of squares in fp64, chunk by chunk: of all at once torch would make an fp64 copy."""
    chunks = value.reshape(-1).split(NORM_CHUNK_ELEMENTS)
    norms = [torch.linalg.vector_norm(chunk, dtype=torch.float64) for chunk in chunks]
    return torch.stack(norms).square().sum()


def _held(engine: "ZeroEngine") -> tuple[bool, Iterator[tuple[nn.Parameter, Tensor]]]:
    """Whether gradients are whole on each data rank, and what of them is here."""
    optimizer = engine.zero_optimizer
    match engine.sharding:
        case Sharding.REPLICATED:
            parameters = engine.module.parameters()
            return True, ((p, p.grad) for p in parameters if p.grad is not None)
        case Sharding.PER_PARAMETER:
            averaged = [optimizer.averaged_gradients[i] for i in range(len(optimizer.fp16_groups))]
            pairs = _paired(optimizer.fp16_groups, averaged)
            return False, ((p, part) for p, part in pairs if p.requires_grad)
        case Sharding.FLAT_GROUPS if hasattr(optimizer, "fp32_groups_gradients"):
            return True, _paired(optimizer.bf16_groups, optimizer.fp32_groups_gradients)
        case Sharding.FLAT_GROUPS:
            return False, _parts_of_groups(optimizer)


def _paired(groups: Any, gradients: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for of_group, its_gradients in zip(groups, gradients, strict=True):
        yield from zip(of_group, its_gradients, strict=True)


def _parts_of_groups(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for index, parameters in enumerate(optimizer.bit16_groups):
        # Padding aside, the pieces lie one behind the other as in the flat partition.
        pieces: list[Tensor] = optimizer.averaged_gradients[index]
        by_offset = dict(
            zip(accumulate((p.numel() for p in pieces), initial=0), pieces, strict=False)
        )
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:
                yield parameter, by_offset[mapping.hp_fragment_address.start]
