"""Ranks that succeed or fail together, so that one rank's error never leaves the others waiting."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


def on_all_ranks(
    work: Callable[[], Result], error_type: type[Exception], *, group: Any = None
) -> Result:
    """Runs `work` on this rank and returns its result only if it succeeded on every rank.

    Every rank must call this. `work` must not communicate: a rank that fails would leave the
    others inside the collective.

    Args:
        work: what this rank does; local work only.
        error_type: raised on every rank if any failed, with the message of the first failing one.
        group: process group of all ranks to agree over; the default one if None. A thread beside
            the main one needs its own, or their messages would mix.

    Raises:
        error_type: some rank failed.
    """
    result: Result | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    raise_first(error, error_type, group=group)
    return result  # pyright: ignore[reportReturnType]  # no failure: work() has returned


def on_first_rank(
    work: Callable[[], Result], error_type: type[Exception], *, group: Any = None
) -> Result:
    """What `work` gives on the first rank, on every rank; otherwise as `on_all_ranks`."""
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    found = on_all_ranks(lambda: [work()] if is_first else [], error_type, group=group)
    return gathered(found, group=group)[0][0]


def raise_first(error: Exception | None, error_type: type[Exception], *, group: Any = None) -> None:
    """Raises on every rank what the first failing rank has caught; every rank must call this.

    Args:
        error: what happened to this rank; None if nothing did.
        error_type: raised on every rank, with the message of the first failing one; where that is
            of a type derived from it, the derived type is raised.
        group: as in `on_all_ranks`.

    Raises:
        error_type: some rank failed.
    """
    told = gathered(None if error is None else _describe(error, error_type), group=group)
    failed = [(rank, each) for rank, each in enumerate(told) if each is not None]
    if failed:
        rank, (kind, message) = failed[0]
        where = "" if len(told) == 1 else f" (rank {rank} of {len(told)})"
        raise kind(f"{message}{where}") from error


def gathered(value: Result, *, group: Any = None) -> list[Result]:
    """What every rank passed, in rank order; every rank must call this (see `on_all_ranks`)."""
    if not dist.is_initialized():
        return [value]
    values: list[Result] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def _describe(error: Exception, error_type: type[Exception]) -> tuple[type[Exception], str]:
    if isinstance(error, error_type):
        return type(error), str(error)
    # It speaks for itself; of others the message alone ("'name'") would not be understood.
    own = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return error_type, f"{own}{error}"
