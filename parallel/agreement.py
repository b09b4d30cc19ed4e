"""Ranks that succeed or fail together, so that one rank's error never leaves the others waiting."""

import contextlib
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import torch.distributed as dist

Result = TypeVar("Result")

LOOKS_SECONDS: Final = 0.5
"""Between two looks at whether another rank has failed."""
GRACE_SECONDS: Final = 5.0
"""How long a rank that ends waits for the others to have heard why."""

_together = itertools.count()
"""Numbers contexts of `failing_together`, alike on all ranks."""


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
        # What all say alike is of no rank: a mistake in what all were given.
        where = "" if len({*told}) == 1 else f" (rank {rank} of {len(told)})"
        raise kind(f"{message}{where}") from error


def gathered(value: Result, *, group: Any = None) -> list[Result]:
    """What every rank passed, in rank order; every rank must call this (see `on_all_ranks`)."""
    if not dist.is_initialized():
        return [value]
    values: list[Result] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


@contextmanager
def failing_together(
    error_type: type[Exception], *, end: Callable[[Exception], object]
) -> Generator[None]:
    """Within the context ranks may wait for each other, and an error of one is an error of all.

    Every rank must enter it. A rank that fails tells the others beside all collectives, in which
    they may be waiting for it: nothing calls them back from there, so that they end.

    Args:
        error_type: of errors that are told; others pass.
        end: ends this process because of an error of another rank; called in a thread of its own.

    Raises:
        error_type: this rank failed, or another did, and this one came out of where it waited.
    """
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size == 1:
        yield
        return
    # A connection of its own: on the usual one, others may wait for what never comes.
    usual: Any = dist.distributed_c10d._get_default_store()
    store = usual.clone()
    key = f"failing_together/{next(_together)}"
    is_over = threading.Event()

    def told() -> Exception | None:
        with contextlib.suppress(dist.DistError):
            if store.check([key]):
                rank, kind, message = pickle.loads(store.get(key))
                return kind(f"{message} (rank {rank} of {size})")
        return None

    def await_others() -> None:
        """Until all have heard: one of them keeps the store, which is gone once that has ended."""
        deadline = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(dist.DistError):
            store.add(f"{key}/heard", 1)
            while store.add(f"{key}/heard", 0) < size and time.monotonic() < deadline:
                time.sleep(0.05)

    def watch() -> None:
        while not is_over.wait(LOOKS_SECONDS):
            if (error := told()) is not None:
                await_others()
                end(error)
                return

    watching = threading.Thread(target=watch, name="failing-together", daemon=True)
    watching.start()
    try:
        yield
    except error_type as error:
        is_over.set()
        with contextlib.suppress(dist.DistError):
            if store.add(f"{key}/failed", 1) == 1:
                kind, message = _describe(error, error_type)
                store.set(key, pickle.dumps((dist.get_rank(), kind, message)))
        await_others()
        raise
    except Exception as error:
        is_over.set()
        # Who has failed has perhaps closed its connections by now.
        if (found := told()) is None:
            raise
        await_others()
        raise found from error
    finally:
        is_over.set()
        watching.join()


def _describe(error: Exception, error_type: type[Exception]) -> tuple[type[Exception], str]:
    if isinstance(error, error_type):
        return type(error), str(error)
    # It speaks for itself; of others the message alone ("'name'") would not be understood.
    own = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return error_type, f"{own}{error}"
