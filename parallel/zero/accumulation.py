"""How gradients add up under DeepSpeed's BF16_Optimizer, over microbatches and over ranks.

It keeps the low-precision gradients until each backward has ended, adds them to a buffer that it
fills with zeros every step, and then sums that whole buffer over the ranks, of which each reads
its own part alone. Here each gradient is added when it is there, the first of a step overwrites,
and each rank receives the sum of its part. By count of reads and writes that is 34 bytes a
parameter and step less at one rank, 26 of them in every microbatch; with NCCL half as much travels
between ranks, and a quarter in bf16.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.mesh import Mesh
from parallel.zero.config import Precision


def spare_traffic(deepspeed_engine: Any, mesh: Mesh, *, travels_in: Precision) -> None:
    """Makes an engine accumulate and reduce so.

    Args:
        deepspeed_engine: whose optimiser is a BF16_Optimizer.
        mesh: this rank's place.
        travels_in: type of gradients between ranks.
    """
    optimizer = deepspeed_engine.optimizer
    sums: list[list[Tensor]] = optimizer.fp32_groups_gradients
    is_there: list[list[bool]] = optimizer.fp32_groups_has_gradients

    def add(parameter: nn.Parameter, group: int, index: int, clear_lp_grads: bool) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        target = sums[group][index]
        if is_there[group][index]:
            target.add_(gradient.view(target.shape))
        else:
            target.copy_(gradient.view(target.shape))
        is_there[group][index] = True
        # What DeepSpeed's own functions look for.
        parameter._hp_grad = target  # pyright: ignore[reportAttributeAccessIssue]
        if clear_lp_grads:
            gradient.zero_()

    add_after_backward = optimizer.update_hp_grads

    def end_backward(clear_lp_grads: bool = False) -> None:
        add_after_backward(clear_lp_grads=clear_lp_grads)
        if not deepspeed_engine.is_gradient_accumulation_boundary():
            return
        for of_group, there in zip(sums, is_there, strict=True):
            for target, has_gradient in zip(of_group, there, strict=True):
                if not has_gradient:  # what is there is an older step's
                    target.zero_()

    def forget() -> None:
        for there in is_there:
            there[:] = [False] * len(there)

    @torch.no_grad()
    def reduce(*_: Any, **__: Any) -> None:
        for flat, own in zip(
            optimizer.fp32_groups_gradients_flat,
            optimizer.fp32_groups_gradient_flat_partition,
            strict=True,
        ):
            take_mean(own, flat, mesh, travels_in=travels_in)

    optimizer._update_hp_grad = torch.no_grad()(add)
    optimizer.update_hp_grads = torch.no_grad()(end_backward)
    optimizer.clear_hp_grads = forget
    deepspeed_engine.buffered_allreduce_fallback = reduce
    if mesh.data_size == 1:
        deepspeed_engine.enable_backward_allreduce = False


def take_mean(own: Tensor, flat: Tensor, mesh: Mesh, *, travels_in: Precision) -> None:
    """The mean over the R data ranks of the r-th of R equal parts, on rank r.

    In bf16 each rank's part is rounded once, and the sum is still taken in fp32: a library's
    reduction would round after each rank.

    Args:
        own: [n / R] where it is put: this rank's part of `flat` itself.
        flat: [n] this rank's gradients, fp32, n a multiple of R; the rest of it is used up.
        mesh: this rank's place.
        travels_in: type between ranks.
    """
    size = mesh.data_size
    if travels_in == "fp32":
        # Its new name, of torch 2.13, older versions do not know.
        dist.reduce_scatter_tensor(own, flat, group=mesh.data_group)  # pyright: ignore[reportDeprecated]
    else:
        sent = flat.bfloat16()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=mesh.data_group)
        torch.sum(received.view(size, -1), dim=0, dtype=flat.dtype, out=own)
    own.div_(size)
