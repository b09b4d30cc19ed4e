"""Activations computed again in the backward instead of being kept."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "selective", "full"]
"""What is not kept for the backward: nothing, what lies between attention's projections, or all
of a block but its input."""


def run(function: Callable[..., Any], *inputs: Any, again: bool) -> Any:
    """Call the function, whose inputs alone are kept if it is to be computed again.

    Its random numbers then come back the same.
    """
    if again and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
