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


class Stopping:
    """What signals that end a process do meanwhile: raise, as Ctrl-C does.

    Args:
        sentence: what the `KeyboardInterrupt` says.
    """

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        self._waits = self._came = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        del number, frame
        self._came = True
        self._raise()

    @contextlib.contextmanager
    def later(self) -> Generator[None]:
        """Whatever comes waits for the end of the context: what is started is noted, too."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self._raise()

    def _raise(self) -> None:
        if self._came and not self._waits:
            self._came = False
            raise KeyboardInterrupt(self._sentence)


@contextlib.contextmanager
def told_to_stop(sentence: str) -> Generator[Stopping]:
    """Meanwhile signals that end a process raise, as Ctrl-C does, unless they are ignored.

    Args:
        sentence: what the `KeyboardInterrupt` says.
    """
    stopping = Stopping(sentence)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    heard = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stopping.hear) for number in heard}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
