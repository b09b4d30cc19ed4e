"""Signals that ask a run to save and stop."""

import signal
from types import FrameType


class Preemption:
    """Remembers that SIGTERM, SIGUSR1 or SIGHUP came, or Ctrl-C. Slurm repeats its own.

    A terminal sends SIGHUP when it is closed. A second Ctrl-C ends at once. Where whoever started
    the process has it ignore SIGINT, as shells do in the background, or SIGHUP, as nohup does, it
    still does.
    """

    def __init__(self):
        self.requested = False
        self._numbers = [signal.SIGTERM, signal.SIGUSR1]
        for number in (signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._numbers.append(number)
        for number in self._numbers:
            signal.signal(number, self._note)

    def ignore(self) -> None:
        """Let no late signal change the exit status, once everything is saved."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        self.requested = True
