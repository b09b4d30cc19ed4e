"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

import time
from collections import deque
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from train.watch.metrics import Record, TrainRecord, ValidationRecord

WINDOW_STEPS = 20
"""Steps over which loss, throughput and remaining time are averaged."""

LINE_SECONDS = 10.0
"""A plain line appears after this time at the latest, if a step ended."""


class ProgressDisplay(Protocol):
    """Shows records as they come."""

    def write(self, record: Record) -> None:
        """Shows a record, if it is of a kind that people watch."""
        ...

    def note(self, text: str) -> None:
        """Shows a line of text."""
        ...

    def close(self) -> None:
        """Leaves the terminal as it was."""
        ...


class RecentSteps:
    """Averages over the last steps, and what they say about the time left.

    Args:
        total_steps: step at which the run ends.
    """

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._recent: deque[tuple[TrainRecord, float]] = deque(maxlen=WINDOW_STEPS)

    def add(self, record: TrainRecord) -> None:
        """Takes the latest step."""
        self._recent.append((record, time.monotonic()))

    @property
    def loss(self) -> float:
        """Mean loss, in nats."""
        return sum(record.loss for record, _ in self._recent) / len(self._recent)

    @property
    def tokens_per_second(self) -> float:
        """Decoder slots a second of stepping, over all ranks."""
        seconds = sum(record.step_seconds for record, _ in self._recent)
        return sum(record.tokens for record, _ in self._recent) / max(seconds, 1e-9)

    @property
    def remaining_seconds(self) -> float:
        """Time to the last step at the recent pace, what happens between the steps included."""
        first, first_time = self._recent[0]
        last, last_time = self._recent[-1]
        if last.step > first.step:
            step_seconds = (last_time - first_time) / (last.step - first.step)
        else:
            step_seconds = last.step_seconds
        return step_seconds * (self._total_steps - last.step)

    @property
    def pace(self) -> str:
        """Throughput and remaining time, in words."""
        remaining = format_seconds(self.remaining_seconds)
        return f"{self.tokens_per_second:,.0f} tokens/s eta {remaining}"


class LineProgress:
    """One plain line every few steps, for logs.

    Args:
        console: where the lines go.
        total_steps: step at which the run ends.
        first_step: steps done before.
        log_every_steps: steps between two lines.
    """

    def __init__(
        self, console: Console, *, total_steps: int, first_step: int, log_every_steps: int
    ) -> None:
        self._console = console
        self._total_steps = total_steps
        self._log_every_steps = log_every_steps
        self._first_step = first_step
        self._recent = RecentSteps(total_steps)
        self._line_time = time.monotonic()

    def write(self, record: Record) -> None:
        """Prints a line for a validation, and for a step when one is due."""
        if isinstance(record, ValidationRecord):
            self.note(f"step {record.step}/{self._total_steps} validation loss {record.loss:.3f}")
        if not isinstance(record, TrainRecord):
            return
        self._recent.add(record)
        is_due = (
            record.step % self._log_every_steps == 0
            or record.step in (self._first_step + 1, self._total_steps)
            or time.monotonic() - self._line_time > LINE_SECONDS
        )
        if is_due:
            self._line_time = time.monotonic()
            self.note(
                f"step {record.step}/{self._total_steps} loss {record.loss:.3f} "
                f"lr {_format_rate(record.learning_rate)} {self._recent.pace}"
            )

    def note(self, text: str) -> None:
        """Prints the text."""
        # Soft wrapping: rich would otherwise break lines at 80 columns where there is no terminal.
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Does nothing: lines need no end."""


class BarProgress:
    """A live bar for a terminal.

    Args:
        console: the terminal.
        total_steps: step at which the run ends.
        first_step: steps done before.
    """

    def __init__(self, console: Console, *, total_steps: int, first_step: int) -> None:
        self._recent = RecentSteps(total_steps)
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", style="cyan"),
            TextColumn("{task.fields[validation]}", style="green"),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(
            "train", total=total_steps, completed=first_step, status="first step…", validation=""
        )
        self._bar.start()

    def write(self, record: Record) -> None:
        """Moves the bar."""
        if isinstance(record, ValidationRecord):
            self._bar.update(self._task, validation=f"validation {record.loss:.3f}")
        elif isinstance(record, TrainRecord):
            self._recent.add(record)
            status = f"loss {self._recent.loss:.3f} {self._recent.pace}"
            self._bar.update(self._task, completed=record.step, status=status)

    def note(self, text: str) -> None:
        """Prints the text above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Stops the bar where it is."""
        self._bar.stop()


def format_seconds(seconds: float) -> str:
    """A duration as people write it: 3:21, or 2:03:21 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _format_rate(learning_rate: float) -> str:
    """A learning rate as people type it: 2.9e-4, not 2.9e-04."""
    if learning_rate == 0:
        return "0"
    mantissa, exponent = f"{learning_rate:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
