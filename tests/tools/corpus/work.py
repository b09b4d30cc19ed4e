"""What worker processes do in tests; imports little, since each of them does."""

import os
import signal
from collections.abc import Callable

from train.errors import DataError

Report = Callable[[int, int, int], None]
Work = Callable[[int, Report], int]


def end_abruptly() -> Work:
    """A worker that a signal ends at its fourth task."""

    def work(task: int, report: Report) -> int:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    return work


def count() -> Work:
    """A worker that squares numbers, and that knows no fifth."""

    def work(task: int, report: Report) -> int:
        if task == 5:
            raise DataError("the fifth is bad")
        report(10, 1, task)
        return task * task

    return work
