"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from train.watch.config import WatchConfig
from train.watch.metrics import (
    NoteRecord,
    Record,
    RunRecord,
    ScoreRecord,
    TrainRecord,
    ValidationRecord,
    WholeValidationRecord,
)

WINDOW_STEPS = 20
"""Steps over which loss, throughput and remaining time are averaged."""

LINE_SECONDS = 10.0
"""A plain line appears after this time at the latest, if a step ended."""


class Display:
    """Shows records as they come.

    Args:
        run: this start of the run.
        watch: whether to show a bar or lines, and how many.
    """

    def __init__(self, run: RunRecord, watch: WatchConfig) -> None:
        self._run = run
        self._log_every_steps = watch.log_every_steps
        self._console = Console()
        self._recent: deque[tuple[TrainRecord, float]] = deque(maxlen=WINDOW_STEPS)
        self._line_time = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_interactive if watch.progress is None else watch.progress:
            self._bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[status]}", style="cyan"),
                TextColumn("{task.fields[validation]}", style="green"),
                console=self._console,
                expand=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(
                "train",
                total=run.total_steps,
                completed=run.step,
                status="first step…",
                validation="",
            )
            self._bar.start()

    def write(self, record: Record) -> None:
        """Shows a record, if it is of a kind that people watch."""
        place = f"step {record.step}/{self._run.total_steps}"
        match record:
            case NoteRecord():
                self._print(record.text)
            case ValidationRecord():
                if self._bar is None:
                    self._print(f"{place} validation loss {record.loss:.3f}")
                else:
                    self._bar.update(self._task, validation=f"validation {record.loss:.3f}")
            case WholeValidationRecord():
                told = f"validation loss {record.loss:.4f} of all {record.sequences:,} sequences"
                self._print(f"{place} {told}")
            case ScoreRecord():
                told = f"{record.task} {record.metric} {record.score:.3f} of {record.rows} rows"
                self._print(f"{place} {told}")
            case TrainRecord():
                self._recent.append((record, time.monotonic()))
                if self._bar is not None:
                    loss = sum(recent.loss for recent, _ in self._recent) / len(self._recent)
                    status = f"loss {loss:.3f} {self._pace()}"
                    self._bar.update(self._task, completed=record.step, status=status)
                elif self._is_due(record):
                    self._line_time = time.monotonic()
                    rate = f"{record.learning_rate:.1e}"  # as people type it
                    rate = rate.replace("e-0", "e-").removesuffix("e+00")
                    self._print(f"{place} loss {record.loss:.3f} lr {rate} {self._pace()}")
            case _:
                pass

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, text: str) -> None:
        # Soft wrapping: rich would otherwise break lines at 80 columns where there is no terminal.
        self._console.print(text, soft_wrap=self._bar is None, markup=False, highlight=False)

    def _is_due(self, record: TrainRecord) -> bool:
        return (
            record.step % self._log_every_steps == 0
            or record.step in (self._run.step + 1, self._run.total_steps)
            or time.monotonic() - self._line_time > LINE_SECONDS
        )

    def _pace(self) -> str:
        """Decoder slots a second of stepping, and the time left, in words.

        What happens between the steps counts for the time left alone.
        """
        seconds = sum(record.step_seconds for record, _ in self._recent)
        rate = sum(record.tokens for record, _ in self._recent) / max(seconds, 1e-9)
        (first, first_time), (last, last_time) = self._recent[0], self._recent[-1]
        step_seconds = last.step_seconds
        if last.step > first.step:
            step_seconds = (last_time - first_time) / (last.step - first.step)
        remaining = format_seconds(step_seconds * (self._run.total_steps - last.step))
        return f"{rate:,.0f} tokens/s eta {remaining}"


def format_seconds(seconds: float) -> str:
    """A duration as people write it: 3:21, or 2:03:21 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
