"""What ZeRO-3 keeps whole on every rank, renewed all at once.

DeepSpeed drops each of these small parameters after a step and gathers it anew: eight operators or
so for each norm and bias, more than the rest of the update. Here they stay where they are, and one
copy writes the new values into them.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.mesh import Mesh


class Persistent:
    """The parameters that ZeRO-3 keeps whole.

    Args:
        zero_optimizer: DeepSpeed's; from now on it neither drops nor gathers them.
        module: what it trains.
        mesh: this rank's place.
    """

    def __init__(self, zero_optimizer: Any, module: nn.Module, mesh: Mesh) -> None:
        self._parameters: list[Any] = zero_optimizer.persistent_parameters
        self._mesh = mesh
        self._addresses: list[int] = []
        self._renewal: _Renewal | None = None
        zero_optimizer.persistent_parameters = []
        offload, others = zero_optimizer.parameter_offload, _Others(module)

        def drop_others() -> None:
            offload.get_param_coordinator().release_and_reset_all(others)

        zero_optimizer._partition_all_parameters = drop_others

    def renew(self) -> None:
        """Write what the ranks' parts hold into the whole; every rank must call it."""
        absent = [p for p in self._parameters if p.ds_status.name == "NOT_AVAILABLE"]
        if absent:  # no forward has used them yet
            absent[0].all_gather(absent)
        if len(absent) == len(self._parameters):
            return
        addresses = [p.data_ptr() for p in self._parameters]
        if self._renewal is None or addresses != self._addresses:
            self._addresses = addresses
            self._renewal = _Renewal(self._parameters, self._mesh)
        self._renewal.run()


class _Renewal:
    """Copies from the ranks' parts of parameters into places that stay the same."""

    def __init__(self, parameters: list[Any], mesh: Mesh) -> None:
        self._group = mesh.data_group
        self._parts: list[Tensor] = [parameter.ds_tensor for parameter in parameters]
        lengths = [part.numel() for part in self._parts]
        self._gathered = self._parts[0].new_empty(mesh.data_size * sum(lengths))
        self._targets: list[Tensor] = []
        self._sources: list[Tensor] = []
        for rank, of_rank in enumerate(self._gathered.chunk(mesh.data_size)):
            for parameter, length, part in zip(
                parameters, lengths, of_rank.split(lengths), strict=True
            ):
                # The last ranks' parts may be padding.
                place = parameter.detach().view(-1)[rank * length : (rank + 1) * length]
                self._targets.append(place)
                self._sources.append(part[: place.numel()])

    @torch.no_grad()
    def run(self) -> None:
        """Gather and copy."""
        own = torch.cat(self._parts)
        # Its new name, of torch 2.13, older versions do not know.
        dist.all_gather_into_tensor(self._gathered, own, group=self._group)  # pyright: ignore[reportDeprecated]
        torch._foreach_copy_(self._targets, self._sources)  # pyright: ignore[reportPrivateImportUsage]


class _Others:
    """All parameters of a module that are not kept whole, as DeepSpeed walks over a module."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def named_parameters(self, *, recurse: bool) -> Iterable[tuple[str, Any]]:
        """Those of the module itself."""
        named: Iterable[tuple[str, Any]] = self._module.named_parameters(recurse=recurse)
        return ((name, p) for name, p in named if not getattr(p, "ds_persist", False))

    def ds_external_parameters(self) -> Iterable[tuple[str, Any]]:
        """None that belong to other modules."""
        return ()
