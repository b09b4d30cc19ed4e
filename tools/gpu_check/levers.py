"""The levers of speed: one table of what can be turned off, by the keys of a run's configuration.

A lever changes speed and no number, so a run may turn it either way at any time. `make gpu-check`
measures each off against all on, in the order of the table: most valuable first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from model.loss import why_no_triton
from parallel.compiled import why_no_compiler
from parallel.launch import own_device


def anywhere() -> str | None:
    """Nothing is needed."""
    return None


def on_cuda() -> str | None:
    """Why this machine lacks CUDA, None if it does not."""
    return None if torch.cuda.is_available() else "no CUDA device"


def with_compiler() -> str | None:
    """Why blocks are not compiled here, None if they are."""
    return on_cuda() or why_no_compiler(torch.device("cuda"))


@dataclass(frozen=True, kw_only=True)
class Lever:
    """Something that makes a run faster and can be turned off.

    Attributes:
        name: in tables.
        off: overrides of the configuration that turn it off.
        off_environment: variables that turn it off; their processes are started for it alone.
        lacks: why this machine cannot have it, None if it can.
    """

    name: str
    off: Sequence[str] = ()
    off_environment: Mapping[str, str] = field(default_factory=dict)
    lacks: Callable[[], str | None] = anywhere


LEVERS: Final = (
    Lever(name="compiled blocks", off=("model.compile=none",), lacks=with_compiler),
    Lever(
        name="large loss chunks",
        off=("model.decoder.loss_chunk_tokens=256",),
    ),
    Lever(
        name="one pass over logits",
        off=("model.decoder.loss_kernel=torch",),
        lacks=lambda: why_no_triton(own_device()),
    ),
    Lever(
        name="gradients added as they come",
        off=("zero.immediate_gradients=false",),
    ),
    Lever(
        name="expandable segments",
        off_environment={"PYTORCH_ALLOC_CONF": "expandable_segments:False"},
        lacks=on_cuda,
    ),
)


def usable() -> list[Lever]:
    """Those that this machine can have."""
    return [lever for lever in LEVERS if lever.lacks() is None]


def overrides(off: Sequence[str]) -> list[str]:
    """Overrides of a configuration that turn levers of these names off, where they can be had.

    Raises:
        KeyError: there is no lever of such a name.
    """
    chosen = {lever.name: lever for lever in LEVERS}
    turned_off = [chosen[name] for name in off]
    return [override for lever in usable() if lever in turned_off for override in lever.off]


def environment(off: Sequence[str]) -> dict[str, str | None]:
    """Variables that a process needs in which levers of these names are off."""
    return {
        name: value
        for lever in LEVERS
        if lever.name in off
        for name, value in lever.off_environment.items()
    }
