"""The levers of speed: one table of what can be turned off, by the keys of a run's configuration.

A lever changes speed and no number, so a run may turn it either way at any time. `make gpu-check`
measures each off against all on, in the order of the table: most valuable first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from parallel.compiled import why_no_compiler


def on_cuda() -> str | None:
    """Why this machine lacks CUDA, None if it does not; nothing is begun on it."""
    return None if torch.cuda.is_available() else "no CUDA device"


def with_triton() -> str | None:
    """Why neither blocks nor our kernels are compiled here, None if they are; nothing is tried."""
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
    lacks: Callable[[], str | None] = lambda: None


LEVERS: Final = (
    Lever(name="compiled blocks", off=("model.compile=none",), lacks=with_triton),
    Lever(name="large loss chunks", off=("model.decoder.loss_chunk_tokens=256",)),
    Lever(name="one pass over logits", off=("model.decoder.loss_kernel=torch",), lacks=with_triton),
    Lever(name="gradients added as they come", off=("zero.immediate_gradients=false",)),
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
    """Overrides of a configuration that turn levers of these names off, where they can be had."""
    return [override for lever in usable() if lever.name in off for override in lever.off]


def environment(off: Sequence[str]) -> dict[str, str | None]:
    """Variables that a process needs in which levers of these names are off."""
    return {
        name: value
        for lever in LEVERS
        if lever.name in off
        for name, value in lever.off_environment.items()
    }
