"""What the keeper itself is told by signals."""

import contextlib
import os
import signal
import time
from collections.abc import Generator
from types import FrameType
from typing import Final

_SAME_SECONDS: Final = 0.1
"""A terminal's SIGINT and one that something passes on come this close together."""


class Asked:
    """What signals have asked for.

    Attributes:
        to_stop: that the ranks save and stop.
        at_once: that all is ended, by a second Ctrl-C.
    """

    def __init__(self) -> None:
        self.to_stop = False
        self.at_once = False
        self._interrupted: float | None = None

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """Takes SIGTERM and SIGUSR1, and SIGHUP and SIGINT unless they are ignored."""
        by_hand = (signal.SIGHUP, signal.SIGINT)
        heard = [each for each in by_hand if signal.getsignal(each) is not signal.SIG_IGN]
        numbers = (signal.SIGTERM, signal.SIGUSR1, *heard)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted is None:
                self._interrupted = now
            elif now - self._interrupted > _SAME_SECONDS:
                self.at_once = True
        if not self.to_stop:
            with contextlib.suppress(OSError):
                os.write(2, f"{name} received, asking the ranks to save and stop\n".encode())
        self.to_stop = True
