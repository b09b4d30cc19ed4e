"""How processes end: with whoever has started them, and by signals that let them clean up."""

import contextlib
import ctypes
import signal
import sys
from collections.abc import Generator
from types import FrameType
from typing import Final

_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG
_LIBC: Final = ctypes.CDLL(None)
"""Loaded here: between fork and exec nothing may be."""


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Called between fork and exec: have this process get a signal when its parent has ended."""
    if sys.platform == "linux":
        _LIBC.prctl(_DIE_WITH_PARENT, number)


@contextlib.contextmanager
def told_to_stop(sentence: str) -> Generator[None]:
    """Meanwhile signals that end a process raise, as Ctrl-C does, unless they are ignored.

    Args:
        sentence: what the `KeyboardInterrupt` says.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt(sentence)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    heard = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
