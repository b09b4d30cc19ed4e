"""Checks the array annotations of functions, and leaves every other annotation alone.

beartype refuses some annotations that are sound (`Self` in a dataclass that it does not decorate,
protocols that are not checkable at run time); what tests want checked are shapes and dtypes.
"""

import types
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
import torch
from beartype import beartype
from jaxtyping import AbstractArray


class _CheckedUnlessTraced(type(jaxtyping.config)):
    """A graph holds what a function computes, not the checks around it."""

    @property
    def jaxtyping_disable(self) -> bool:
        return torch.compiler.is_compiling()

    @jaxtyping_disable.setter
    def jaxtyping_disable(self, value: bool) -> None:
        raise NotImplementedError


def leave_graphs_alone() -> None:
    """Has functions that torch's compiler traces run without their checks."""
    jaxtyping.config.__class__ = _CheckedUnlessTraced


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype on the annotations that speak of arrays; for `jaxtyping.install_import_hook`."""
    if isinstance(function, types.FunctionType):
        function.__annotations__ = {
            name: hint for name, hint in function.__annotations__.items() if _has_array(hint)
        }
    return beartype(function)


def _has_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_array(part) for part in get_args(hint))
