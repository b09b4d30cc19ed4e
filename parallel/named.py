"""Names of what a step does, as a profiler's trace shows them.

Outside of a profiler a name costs microseconds.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import Any, Final

from torch import Tensor
from torch.profiler import record_function

PREFIX: Final = "semicausal"


class Part(StrEnum):
    """What a step consists of, in its order."""

    READ = "read"
    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"


def named(part: Part, *numbers: int) -> AbstractContextManager[Any]:
    """What happens within has this name.

    Args:
        part: of the step.
        numbers: of a forward or backward: of the microbatch, and of the piece of the model.
    """
    return record_function(" ".join([PREFIX, part, ".".join(map(str, numbers))]).rstrip())


@contextmanager
def backwards_named(schedules: Any) -> Generator[None]:
    """Within the context, the backwards of megatron's schedules have the names of their forwards.

    Args:
        schedules: megatron's module of that name. What it takes backwards is marked by `mark`.
    """
    backward_step: Any = schedules.backward_step

    def step(received: Any, sent: Any, *rest: Any) -> Any:
        first = sent[0] if isinstance(sent, list) else sent
        with named(Part.BACKWARD, *getattr(first, _MARK, ())):
            return backward_step(received, sent, *rest)

    schedules.backward_step = step
    try:
        yield
    finally:
        schedules.backward_step = backward_step


def mark(sent: Tensor, microbatch: int, piece: int) -> None:
    """Tell of which forward a tensor is, for its backward."""
    setattr(sent, _MARK, (microbatch, piece))


_MARK: Final = "semicausal_forward"
