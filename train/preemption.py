"""Signals that ask a run to save and stop."""

import contextlib
import os
import signal
import time
from types import FrameType
from typing import Final

_SAME_SECONDS: Final = 0.1
"""A terminal's SIGINT and the one that a launcher passes on come this close together."""


class Preemption:
    """Remembers that SIGTERM, SIGUSR1 or SIGHUP came, or Ctrl-C. Slurm repeats its own.

    A terminal sends SIGHUP when it is closed. The first Ctrl-C is answered, for a step may take
    long; a second one ends at once. Where whoever started
    the process has it ignore SIGINT, as shells do in the background, or SIGHUP, as nohup does, it
    still does.

    Compilers and drivers that are loaded later may take signals for themselves, below Python: LLVM,
    with which Triton compiles in this process, takes all of these, and forgets SIGUSR1.

    Args:
        answers: whether this rank answers for all.
    """

    def __init__(self, *, answers: bool = True):
        self._requested = False
        self._answers = answers
        self._interrupted: float | None = None
        self._numbers = [signal.SIGTERM, signal.SIGUSR1]
        for number in (signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._numbers.append(number)
        self._listen()

    @property
    def requested(self) -> bool:
        """Whether one has come; whoever has taken signals since this was last asked loses them."""
        self._listen()
        return self._requested

    def _listen(self) -> None:
        for number in self._numbers:
            signal.signal(number, self._note)

    def ignore(self) -> None:
        """Let no late signal change the exit status, once everything is saved."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._requested = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            if self._answers:
                # Not through `sys.stderr`, in whose middle the signal may have come.
                with contextlib.suppress(OSError):
                    os.write(2, b"saving and stopping after this step; Ctrl-C again ends at once\n")
        elif now - self._interrupted > _SAME_SECONDS:
            raise KeyboardInterrupt


def quiet_until_asked() -> None:
    """Let Ctrl-C end a process that has nothing to save yet, without a traceback.

    Until `Preemption` or `raise_when_asked` takes over. Where it is ignored it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_when_asked() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
