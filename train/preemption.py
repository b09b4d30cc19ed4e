"""Signals that ask a run to save and stop."""

import signal
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped early with everything saved; the same command continues."""

INTERRUPTED_CODE = 130
"""Ended by a second Ctrl-C, at once and without saving, as a shell reports SIGINT."""


class Preemption:
    """Remembers that SIGTERM or SIGUSR1 came, or Ctrl-C. Slurm repeats them; a second Ctrl-C ends.

    Where whoever started the process has it ignore SIGINT, as shells do in the background, it
    still does.
    """

    def __init__(self):
        self.requested = False
        self._numbers = [signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._numbers.append(signal.SIGINT)
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
