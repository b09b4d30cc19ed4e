"""Activations computed again in the backward instead of being kept."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "selective", "full"]
"""What is not kept for the backward: nothing, what lies between attention's projections, or all
of a block but its input."""


def plain(function: Callable[..., Any], *inputs: Any) -> Any:
    """Call the function; everything it needs for the backward is kept."""
    return function(*inputs)


def checkpointed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Call the function and keep its inputs alone; its random numbers come back the same."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)
