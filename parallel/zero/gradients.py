"""Gradients as ZeRO holds them after the last backward: summed where shared, and their norm.

Called between the last backward of a step and the optimiser, when each rank holds the reduced
gradient of its share of its stage's parameters.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
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
        part: of the model that it belongs to, as `part_of` says.
        is_tied: the same weight is on the other end of the pipeline.
        is_copy: another rank holds the same elements and speaks for them.
        num_copies: ranks that hold the same elements.
    """

    parameter: nn.Parameter
    value: Tensor
    part: str
    is_tied: bool
    is_copy: bool
    num_copies: int


def part_of(name: str) -> str:
    """The block that a parameter is in, or the layer where it is in none."""
    in_block = re.match(r".*?\.\d+(?=\.)", name)
    return in_block[0] if in_block else name.rpartition(".")[0] or name


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
                part=engine.part_of[parameter],
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
        totals = _unflatten_dense_tensors(flat, partial)
        torch._foreach_copy_(partial, totals)  # pyright: ignore[reportPrivateImportUsage]


class Weights:
    """How much each gradient counts in the sums of squares, kept on the device.

    It stays the same from step to step, and to bring it there anew would wait for the device.

    Args:
        parts: of the whole model, the same on every rank.
        device: where they are kept.
    """

    def __init__(self, parts: Sequence[str], device: torch.device):
        self._parts = parts
        self._device = device
        self._shares: list[tuple[bool, int, str]] = []
        self._weights = torch.zeros(2 + len(parts), 0, dtype=torch.float64, device=device)

    def of(self, gradients: list[Gradient]) -> Tensor:
        """[2 + P, n] of n gradients and P parts of the model, fp64.

        If one copy speaks for all, if all share, and of each part if one copy speaks for all.
        """
        shares = [(gradient.is_copy, gradient.num_copies, gradient.part) for gradient in gradients]
        if shares != self._shares:
            self._shares = shares
            spoken = [float(not copy) for copy, _, _ in shares]
            rows = [spoken, [1 / num for _, num, _ in shares]]
            for part in self._parts:
                of_it = [its_part == part for _, _, its_part in shares]
                rows.append([own * inside for own, inside in zip(spoken, of_it, strict=True)])
            self._weights = torch.tensor(rows, dtype=torch.float64, device=self._device)
        return self._weights


def squares(gradients: list[Gradient], weights: Tensor) -> Tensor:
    """[2 + P] this rank's share of the squared norm of the gradient, fp64, on its device.

    Summed over ranks, the first two are the square of the whole with each element counted once: by
    those who speak for it, and as the mean over its copies. The others are those of the P parts of
    the model, by those who speak for them.

    On a CPU norms are taken in fp64: torch's fp32 norm is off by 3e-5 there at two million
    elements. On a GPU, which adds up in a tree, fp32 is as good, and reads a quarter of the bytes.

    Args:
        gradients: from `collect`.
        weights: [2 + P, n] of them, from `Weights`.
    """
    values = [gradient.value for gradient in gradients]
    if not values:  # the share of this rank is padding alone
        return weights.sum(dim=1)
    on_cpu = weights.device.type == "cpu"
    if on_cpu and any(value.numel() > NORM_CHUNK_ELEMENTS for value in values):
        # Of all at once torch would make an fp64 copy.
        pieces = [value.reshape(-1).split(NORM_CHUNK_ELEMENTS) for value in values]
        num_pieces = torch.tensor([len(of_one) for of_one in pieces])
        weights = weights.repeat_interleave(num_pieces, dim=1)
        values = list(chain.from_iterable(pieces))
    precision = torch.float64 if on_cpu else torch.float32
    norms = torch._foreach_norm(values, 2, dtype=precision)  # pyright: ignore[reportPrivateImportUsage]
    return weights @ torch.stack(norms).double().square()


def differ(spoken: Any, mean: Any) -> Any:
    """Whether copies of a gradient do, by the two sums over all ranks; of numbers or tensors."""
    return abs(spoken - mean) > AGREEMENT * spoken


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
        case Sharding.FLAT_SUMS:
            return False, _parts_of_buffers(optimizer)
        case Sharding.FLAT_GROUPS:
            return False, _parts_of_groups(optimizer)


def _paired(groups: Any, gradients: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for of_group, its_gradients in zip(groups, gradients, strict=True):
        yield from zip(of_group, its_gradients, strict=True)


def _parts_of_buffers(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    parts: list[Tensor] = optimizer.fp32_groups_gradient_flat_partition
    for parameters, part in zip(optimizer.bf16_groups, parts, strict=True):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:
                address = mapping.hp_fragment_address
                yield parameter, part.narrow(0, address.start, address.numel)


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
