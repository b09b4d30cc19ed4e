"""What a forward needs of an engine; and an engine that can do no more."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from model.semicausal import SemiCausal
from parallel.mesh import Mesh


class Engine(Protocol):
    """A model, or this rank's part of one, that runs forwards; a `ZeroEngine` is one."""

    @property
    def module(self) -> nn.Module:
        """The model, or this rank's part."""
        ...

    @property
    def mesh(self) -> Mesh:
        """This rank's place and groups."""
        ...

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The forward of what this rank holds; its group's ranks must call it alike."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Within the context, forwards run in evaluation mode and without gradients."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenEngine:
    """A model that is not trained: no ZeRO, no gradients, no optimiser.

    Attributes:
        module: the model, or this rank's part of one, in evaluation mode.
        mesh: this rank's place and groups.
    """

    module: SemiCausal
    mesh: Mesh

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The forward of what this rank holds."""
        return self.module(*inputs, **options)

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Without gradients."""
        with torch.no_grad():
            yield
