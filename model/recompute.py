"""Activations computed again in the backward instead of being kept."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "selective", "full"]
"""What is not kept for the backward: nothing, what lies between attention's projections, or all
of a block but its input."""


def run(function: Callable[..., Any], *inputs: Any, again: bool) -> Any:
    """Call the function, whose inputs alone are kept if it is to be computed again.

    Its random numbers then come back the same. Where nothing asks for a gradient, as in layers that
    are fixed, nothing is kept in any case.
    """
    if again and torch.is_grad_enabled() and _asks_for_gradient(function, inputs):
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def _asks_for_gradient(function: Callable[..., Any], inputs: tuple[Any, ...]) -> bool:
    parameters = function.parameters() if isinstance(function, nn.Module) else ()
    tensors = (value for value in (*inputs, *parameters) if isinstance(value, Tensor))
    return any(tensor.requires_grad for tensor in tensors)
