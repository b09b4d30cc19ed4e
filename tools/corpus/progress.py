"""Shows how far a corpus is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Generator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tools.corpus.pool import Report
from tools.progress import now_and_then


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

    with now_and_then(console, line, live=progress):
        yield report
