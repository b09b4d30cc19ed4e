"""Signals that ask a run to save and stop."""

import signal
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped early with everything saved; the same command continues."""


class Preemption:
    """Remembers that SIGTERM or SIGUSR1 came. Slurm repeats them; only SIGKILL ends the save."""

    def __init__(self):
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def ignore(self) -> None:
        """Let no late signal change the exit status, once everything is saved."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
