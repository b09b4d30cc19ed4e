"""The words in which a class of transformers is described."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor

Part = Literal["decoder", "text", "image", "audio", "video"]
Described = Mapping[str, Any]
"""A config.json of transformers."""

_GELUS: Final[Mapping[str, str]] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one of our tensors comes from.

    Attributes:
        ours: its name, `{}` being the layer.
        theirs: of which tensors it is made.
        made: makes it of them.
        taken_apart: makes them of it; None where there is no way back.
    """

    ours: str
    theirs: tuple[str, ...]
    made: Callable[..., Tensor] = lambda value: value
    taken_apart: Callable[[Tensor], tuple[Tensor, ...]] | None = lambda value: (value,)

    def of_layer(self, layer: int) -> "Entry":
        """The same for one layer."""
        return Entry(
            ours=self.ours.replace("{}", str(layer)),
            theirs=tuple(name.replace("{}", str(layer)) for name in self.theirs),
            made=self.made,
            taken_apart=self.taken_apart,
        )


@dataclass(frozen=True, kw_only=True)
class Family:
    """A class of models.

    Attributes:
        part: what it becomes.
        prefix: what names begin with where a model with a head was saved.
        shape: the configuration of our decoder or encoder, and faults of what cannot be one.
        table: our tensors and theirs.
        idle: matches names that nothing of ours passes through: heads of encoders, and buffers
            that are no weights.
        renamed: ends of names that files of another age have, and what they are in `table`.
    """

    part: Part
    prefix: str
    shape: Callable[[Described, list[str]], dict[str, Any]]
    table: Callable[[Described, dict[str, Any]], Iterator[Entry]]
    idle: re.Pattern[str]
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])


def one_way(ours: str, *theirs: str, made: Callable[..., Tensor]) -> Entry:
    """Made of theirs, and never taken apart again."""
    return Entry(ours=ours, theirs=theirs, made=made, taken_apart=None)


def both(ours: str, theirs: str) -> Iterator[Entry]:
    """A weight and its bias."""
    for kind in ("weight", "bias"):
        yield Entry(ours=f"{ours}.{kind}", theirs=(f"{theirs}.{kind}",))


def flat(kernel: Tensor) -> Tensor:
    """A convolution that reads each place once, as a linear layer."""
    return kernel.flatten(1)


def grouped(*, groups: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Makes our fused projection of queries, keys and values, group by group."""

    def made(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def parts(whole: Tensor) -> Tensor:
            return whole.view(groups, -1, key.shape[0] // groups, *whole.shape[1:])

        fused = torch.cat([parts(query), parts(key), parts(value)], dim=1)
        return fused.reshape(-1, *query.shape[1:])

    return made


def without_keys(*, groups: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Makes the bias of our fused projection where keys have none.

    Of a key nothing but its difference from others matters: a bias would do nothing.
    """
    fused = grouped(groups=groups)

    def made(query: Tensor, value: Tensor) -> Tensor:
        return fused(query, torch.zeros_like(query), value)

    return made


def apart(*, groups: int, shared: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Queries, keys and values out of our fused projection: the inverse of `grouped`.

    Args:
        groups: G.
        shared: heads of a group.
    """

    def made(fused: Tensor) -> tuple[Tensor, ...]:
        parts = fused.view(groups, shared + 2, -1, *fused.shape[1:]).split((shared, 1, 1), dim=1)
        return tuple(part.reshape(-1, *fused.shape[1:]) for part in parts)

    return made


def gelu(
    described: Described, key: str, faults: list[str], *, also: Mapping[str, str] | None = None
) -> str:
    """Which GELU a configuration names; a fault if it names another activation.

    Args:
        described: the configuration.
        key: that names it.
        faults: to which another is added.
        also: further ones that are computed, and what they are called here.
    """
    known = {**_GELUS, **(also or {})}
    found = str(described.get(key, "gelu"))
    if found not in known:
        faults.append(f"{key} {found[:40]!r}: the activation is one of {', '.join(known)}")
    return known.get(found, "gelu")
