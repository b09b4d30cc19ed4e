"""How the gradients of microbatches add up under DeepSpeed's BF16_Optimizer.

It keeps the low-precision gradients until each backward has ended, adds them to a buffer that it
fills with zeros every step, and at one rank reduces that buffer over itself: 34 bytes a parameter
and step more than below, 26 of them in every microbatch.
"""

from typing import Any

import torch
from torch import nn


def spare_traffic(deepspeed_engine: Any, *, alone: bool) -> None:
    """Makes the first gradient of a step overwrite the last step's sum, and the others add to it.

    Args:
        deepspeed_engine: whose optimiser is a BF16_Optimizer.
        alone: there is one data rank, so that nothing is to be reduced.
    """
    optimizer = deepspeed_engine.optimizer
    sums: list[list[torch.Tensor]] = optimizer.fp32_groups_gradients
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

    optimizer._update_hp_grad = torch.no_grad()(add)
    optimizer.update_hp_grads = torch.no_grad()(end_backward)
    optimizer.clear_hp_grads = forget
    if alone:
        deepspeed_engine.enable_backward_allreduce = False
