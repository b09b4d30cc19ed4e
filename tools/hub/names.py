"""Names of tensors, there and here: one table for both ways.

A folder of our own class has the names of our checkpoints. Nothing is ever passed over: what is
left over or missing is an error that names it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from train.errors import CheckpointError

HEAD = "decoder.head.weight"
EMBEDDING = "decoder.embedding.weight"

_SHOWN = 6
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def without_tied(values: Mapping[str, Tensor], *, place: str) -> dict[str, Tensor]:
    """The tensors without a second copy of the token embedding, which a tied head is.

    Raises:
        CheckpointError: the copy differs, so the head is not tied.
    """
    if HEAD not in values:
        return dict(values)
    if EMBEDDING in values and not values[HEAD].equal(values[EMBEDDING]):
        raise CheckpointError(
            f"{place}: {HEAD} is not {EMBEDDING}, though the head is said to be tied: name a "
            "checkpoint that tied training has written"
        )
    return {name: value for name, value in values.items() if name != HEAD}


def require_all(
    values: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], *, place: str
) -> None:
    """Check that tensors are those of a model: no more, no fewer, each of its shape, and numbers.

    Args:
        values: what there is.
        wanted: shapes by name.
        place: what to call the place where the tensors are.

    Raises:
        CheckpointError: they are not; every fault is named.
    """
    faults: list[str] = []
    if missing := sorted(wanted.keys() - values.keys()):
        faults.append(f"it lacks {_listed(missing)}")
    if left_over := sorted(values.keys() - wanted.keys()):
        faults.append(f"it has left over {_listed(left_over)}")
    for name in sorted(wanted.keys() & values.keys()):
        if (found := tuple(values[name].shape)) != wanted[name]:
            faults.append(f"{name} is {list(found)} and should be {list(wanted[name])}")
    if odd := sorted(name for name, value in values.items() if value.dtype not in _PLAIN):
        kind = str(values[odd[0]].dtype).removeprefix("torch.")
        faults.append(f"of the type {kind}, which only scales make numbers of, are {_listed(odd)}")
    if not faults:
        return
    remedy = "name a checkpoint of this very model, for no weight is dropped or drawn at random"
    if any(".lora_" in name for name in values):
        remedy = "merge its adapters first, with python -m tools.merge"
    if any(".bottleneck." in name for name in values):
        remedy = (
            "bottlenecks cannot be merged, and other programs do not know them: tools.generate, "
            "tools.evaluate and tools.serve read the run as it is"
        )
    raise CheckpointError(f"{place} does not fit: {'; '.join(faults)}; {remedy}")


def require_finite(values: Mapping[str, Tensor], *, place: str) -> None:
    """Check that tensors hold numbers alone.

    Raises:
        CheckpointError: some hold infinities or what is no number; they are named.
    """
    broken = [name for name, value in values.items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{place} is broken: NaN or infinity is in {_listed(sorted(broken))}; name a "
            "checkpoint from before its training diverged, or copy it again"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
