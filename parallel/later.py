"""Numbers that the device still computes: the host goes on, and waits where it must know them."""

import torch
from torch import Tensor


class Later:
    """Numbers on their way from the device to the host.

    The copy is queued at once, behind what makes the numbers and before whatever is launched
    later: to read them costs no more than the device still needs for them. On a CPU they are there
    when they are made.

    Args:
        values: [n] on any device; not written again.
    """

    def __init__(self, values: Tensor):
        self._values = values
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    @property
    def is_here(self) -> bool:
        """Whether the host itself has made them; the same on every rank."""
        return self._copied is None

    def read(self) -> list[float]:
        """The numbers; waits for the device where it is not done with them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
