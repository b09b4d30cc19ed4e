"""When each step of a run was recorded, seen as it is; and what that says of a fault."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.run_directory import RunDirectory
from train.watch.metrics import RunRecord, TrainRecord, parse_record


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """A step that was recorded.

    Attributes:
        step: its number.
        arrived: wall-clock time in Unix seconds.
        seconds: that it took.
        start: the number of the run's start that made it, from 1.
        is_new: whether none before had come so far.
    """

    step: int
    arrived: float
    seconds: float
    start: int
    is_new: bool


@dataclass(kw_only=True)
class Timeline:
    """A run's records, each with the moment at which it came.

    Attributes:
        run: directory of the run.
        steps: in the order in which they were recorded.
        starts: of the run, so far.
    """

    run: Path
    steps: list[Stepped] = field(default_factory=list)
    starts: int = 0
    _highest: int = 0
    _offset: int = 0

    def look(self) -> bool:
        """Take what is new; whether the run has been started meanwhile."""
        now, before = time.time(), self.starts
        try:
            with RunDirectory(self.run).metrics.open("rb") as file:
                file.seek(self._offset)
                piece = file.read()
        except FileNotFoundError:
            return False
        whole = piece[: piece.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            match parse_record(line):
                case RunRecord():
                    self.starts += 1
                case TrainRecord() as record:
                    self._add(record, now)
                case _:
                    pass
        return self.starts > before

    def _add(self, record: TrainRecord, now: float) -> None:
        self.steps.append(
            Stepped(
                step=record.step,
                arrived=now,
                seconds=record.step_seconds,
                start=self.starts,
                is_new=record.step > self._highest,
            )
        )
        self._highest = max(self._highest, record.step)


def next_new(
    steps: Sequence[Stepped], *, since: float, start: int, ends_an_attempt: bool
) -> Stepped | None:
    """The first step after a fault that no start before had come to; None if there is none yet.

    Args:
        steps: of the run.
        since: when the fault was made, in Unix seconds.
        start: that made steps then.
        ends_an_attempt: whether another start has to make it: a step that was under way at the
            fault says nothing.
    """
    return next(
        (
            each
            for each in steps
            if each.is_new and (each.start > start if ends_an_attempt else each.arrived > since)
        ),
        None,
    )


def made_again(steps: Sequence[Stepped], *, since: float, until: float) -> int:
    """How many steps were made once more between two moments."""
    return sum(not each.is_new for each in steps if since < each.arrived <= until)
