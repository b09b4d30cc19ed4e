"""Shows how far the work is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tools.corpus.pool import Report

LINE_SECONDS: Final = 10.0
"""Between two lines where there is no terminal."""


@contextlib.contextmanager
def bar(console: Console, description: str, *, total_bytes: int) -> Generator[Report]:
    """A progress bar over bytes, with documents and tokens a second.

    Args:
        console: where to show it.
        description: what is done.
        total_bytes: of all tasks.

    Yields:
        What is told of the work that was done.
    """
    begun = time.monotonic()
    done = [0, 0, 0]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TextColumn("{task.fields[rates]}"), TimeRemainingColumn())  # fmt: skip
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(description, total=total_bytes, rates="")

    def rate(count: int, name: str) -> str:
        return f"{count / max(time.monotonic() - begun, 1e-3):,.0f} {name}/s" if count else ""

    def report(num_bytes: int, documents: int, tokens: int) -> None:
        for place, count in enumerate((num_bytes, documents, tokens)):
            done[place] += count
        rates = ", ".join(filter(None, (rate(done[1], "documents"), rate(done[2], "tokens"))))
        progress.update(task, advance=num_bytes, rates=rates)

    def line() -> str:
        sizes = f"{done[0] / 1e6:,.1f} of {total_bytes / 1e6:,.1f} MB"
        told = f"{description}: {sizes}, {done[1]:,} documents"
        return ", ".join(filter(None, (told, rate(done[2], "tokens"))))

    with _shown(console, progress, line):
        yield report


@contextlib.contextmanager
def busy(console: Console, description: str) -> Generator[None]:
    """Say that something of unknown length is done."""
    begun = time.monotonic()

    def line() -> str:
        return f"{description}: {time.monotonic() - begun:,.0f} s so far"

    with _shown(console, console.status(description), line):
        yield


@contextlib.contextmanager
def _shown(
    console: Console, live: AbstractContextManager[Any], line: Callable[[], str]
) -> Generator[None]:
    """Show something live, or a line now and then, however long the work itself says nothing."""
    if console.is_terminal:
        with live:
            yield
        return
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(LINE_SECONDS):
            console.print(line(), markup=False, highlight=False, soft_wrap=True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
