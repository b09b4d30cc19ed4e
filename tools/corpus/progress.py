"""Shows how far the work is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

LINE_SECONDS: Final = 10.0
"""Between two lines where there is no terminal."""


class Bar:
    """A progress bar over bytes, with documents and tokens a second."""

    def __init__(self, console: Console, description: str, *, total_bytes: int) -> None:
        """Not shown before the context begins.

        Args:
            console: where to show it.
            description: what is done.
            total_bytes: of all tasks.
        """
        self.console = console
        self.bytes = self.documents = self.tokens = 0
        self._description = description
        self._total_bytes = total_bytes
        self._begun = time.monotonic()
        self._open = contextlib.ExitStack()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task(description, total=total_bytes, rates="")

    def __enter__(self) -> "Bar":
        self._begun = time.monotonic()
        self._progress.start()
        self._open.callback(self._progress.stop)
        if not self.console.is_terminal:
            self._open.enter_context(_lines(self.console, self._line))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, num_bytes: int, documents: int, tokens: int) -> None:
        """Count what was done."""
        self.bytes += num_bytes
        self.documents += documents
        self.tokens += tokens
        seconds = self._seconds()
        rates = f"{self.documents / seconds:,.0f} documents/s"
        if self.tokens:
            rates += f", {self.tokens / seconds:,.0f} tokens/s"
        self._progress.update(self._task, advance=num_bytes, rates=rates)

    def _seconds(self) -> float:
        return max(time.monotonic() - self._begun, 1e-3)

    def _line(self) -> str:
        told = (
            f"{self._description}: {self.bytes / 1e6:,.1f} of {self._total_bytes / 1e6:,.1f} MB, "
            f"{self.documents:,} documents"
        )
        return told + (f", {self.tokens / self._seconds():,.0f} tokens/s" if self.tokens else "")


@contextlib.contextmanager
def busy(console: Console, description: str) -> Generator[None]:
    """Say that something of unknown length is done."""
    if console.is_terminal:
        with console.status(description):
            yield
        return
    begun = time.monotonic()
    with _lines(console, lambda: f"{description}: {time.monotonic() - begun:,.0f} s so far"):
        yield


@contextlib.contextmanager
def _lines(console: Console, tell: Callable[[], str]) -> Generator[None]:
    """Print a line now and then, however long the work itself says nothing."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(LINE_SECONDS):
            console.print(tell(), markup=False, highlight=False, soft_wrap=True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
