"""What a step does besides computing: how often the host waits, how long, and where time goes."""

import contextlib
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from parallel.zero.engine import Update, ZeroEngine

READING: Final = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
"""Methods of a tensor by which the host reads what the device computes."""

SYNCHRONISED: Final = "synchronizing CUDA operation"
"""What torch warns of; it does not know of those inside of collectives."""


@dataclass
class Waits:
    """Waits of the host for the device.

    Attributes:
        calls: those that wait: on CUDA what torch counts, and waits for events and streams, which
            it does not; elsewhere calls that would wait there.
        seconds: spent in calls by which the host reads, copies to the device, or waits for it.
    """

    calls: int = 0
    seconds: float = 0.0


@contextmanager
def counting_waits(device: torch.device) -> Generator[Waits]:
    """Within the context, counts and times how the host waits for a device."""
    found, depth = Waits(), 0

    on_cuda = device.type == "cuda"

    def timed(owner: type, name: str, *, counts: bool) -> Callable[..., Any]:
        method = getattr(owner, name)

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal depth
            started = time.perf_counter()
            depth += 1
            try:
                return method(self, *arguments, **options)
            finally:
                depth -= 1
                if depth == 0:  # some call each other
                    found.seconds += time.perf_counter() - started
                    found.calls += counts

        return call

    reading = {name: timed(Tensor, name, counts=not on_cuda) for name in READING}
    reading["to"] = timed(Tensor, "to", counts=False)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if on_cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            with contextlib.ExitStack() as changed:
                changed.enter_context(replaced(Tensor, **reading))
                for owner in (torch.cuda.Event, torch.cuda.Stream):
                    wait = timed(owner, "synchronize", counts=True)
                    changed.enter_context(replaced(owner, synchronize=wait))
                yield found
        finally:
            if on_cuda:
                torch.cuda.set_sync_debug_mode("default")
    found.calls += sum(SYNCHRONISED in str(warning.message) for warning in told)


@dataclass
class Parts:
    """Seconds of the parts of steps; the backward is what the others leave of them."""

    forward: float = 0.0
    backward: float = 0.0
    update: float = 0.0


@contextmanager
def timing_parts(engine: ZeroEngine, device: torch.device) -> Generator[Parts]:
    """Within the context, times the parts of an engine's steps without making the host wait.

    The context must hold nothing but steps.
    """
    found = Parts()
    spans: dict[str, list[tuple[Any, Any]]] = {"forward": [], "update": []}
    opened: list[Any] = []

    def begin(module: nn.Module, inputs: Any) -> None:
        opened.append(mark(device))

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        spans["forward"].append((opened.pop(), mark(device)))

    update = engine.step

    def timed_update(sums: Tensor | None = None) -> Update:
        begun = mark(device)
        launched = update(sums)
        spans["update"].append((begun, mark(device)))
        return launched

    hooks = [
        engine.module.register_forward_pre_hook(begin),
        engine.module.register_forward_hook(end),
    ]
    begun = mark(device)
    try:
        with replaced(engine, step=timed_update):
            yield found
    finally:
        for hook in hooks:
            hook.remove()
    whole = between(begun, mark(device), device)
    found.forward = sum(between(*pair, device) for pair in spans["forward"])
    found.update = sum(between(*pair, device) for pair in spans["update"])
    found.backward = whole - found.forward - found.update


@contextmanager
def replaced(owner: object, **attributes: object) -> Generator[None]:
    """Within the context, an object or a class has these attributes in place of others."""
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                setattr(owner, name, before[name])
            else:  # it was inherited
                delattr(owner, name)


def mark(device: torch.device) -> Any:
    """A moment: of the device's queue on CUDA, else of the clock."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(begun: Any, ended: Any, device: torch.device) -> float:
    """Seconds between two moments; on CUDA the host waits for the second."""
    if device.type != "cuda":
        return ended - begun
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000
