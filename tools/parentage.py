"""Processes that do not outlive the one that has started them, however that one ends."""

import ctypes
import signal
import sys
from typing import Final

_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG
_LIBC: Final = ctypes.CDLL(None)
"""Loaded here: between fork and exec nothing may be."""


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Called between fork and exec: have this process get a signal when its parent has ended."""
    if sys.platform == "linux":
        _LIBC.prctl(_DIE_WITH_PARENT, number)
