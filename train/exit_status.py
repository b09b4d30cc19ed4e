"""Exit statuses of all commands; `docs/exit-status.md` says who reacts to each, and how."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended."""

    COMPLETE = 0
    """All is done."""
    FAULT = 1
    """A fault of this code, or of the machine, with its traceback."""
    MISTAKE = 2
    """The user must change something, and is told what."""
    GIVEN_UP = 70
    """A keeper's: starting again does not help, as it says: EX_SOFTWARE."""
    UNPRINTED = 74
    """The work is done, but what was printed is not whole: EX_IOERR."""
    SAVED = 75
    """Stopped early with everything saved; the same command continues: EX_TEMPFAIL."""
    INTERRUPTED = 130
    """Ended by Ctrl-C at once, as a shell reports SIGINT."""
