"""A stage of a pipeline on which nothing trains.

DeepSpeed has no engine without parameters to update, and all stages count AdamW's steps alike. So
such a stage updates one number that nothing depends on, and that no checkpoint holds.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn

IDLE_NAME: Final = "trains_nothing"


def train_nothing(model: nn.Module) -> None:
    """Give a model without trainable parameters one, with a gradient of zero in each backward."""
    model.register_parameter(IDLE_NAME, nn.Parameter(torch.zeros(1)))
    model.register_forward_hook(_tie)


def _tie(model: nn.Module, _: Any, output: Any) -> Any:
    if not torch.is_grad_enabled():
        return output
    idle = getattr(model, IDLE_NAME)
    if isinstance(output, Tensor):
        return _Tied.apply(output, idle)
    total, *others = output
    return type(output)(_Tied.apply(total, idle), *others)


class _Tied(torch.autograd.Function):
    """Hands a tensor on as if it depended on another one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, idle: Tensor) -> Tensor:
        ctx.like = idle.dtype, idle.device
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        dtype, device = ctx.like
        return gradients[0], torch.zeros(1, dtype=dtype, device=device)
