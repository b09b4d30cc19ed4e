"""Shows that work goes on, and how far it is: live on a terminal, a line now and then elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

LINE_SECONDS: Final = 10.0
"""Between two lines where there is no terminal."""


@contextlib.contextmanager
def busy(console: Console, description: str) -> Generator[None]:
    """Say that something of unknown length is done."""
    begun = time.monotonic()

    def line() -> str:
        return f"{description}: {time.monotonic() - begun:,.0f} s so far"

    with now_and_then(console, line):
        yield


@contextlib.contextmanager
def now_and_then(
    console: Console, line: Callable[[], str], *, live: AbstractContextManager[Any] | None = None
) -> Generator[None]:
    """Say how far the work is, however long it itself says nothing.

    Args:
        console: where to say it.
        line: what there is to say now; called in a thread.
        live: what a terminal shows; by default the line behind what turns.
    """
    if console.is_terminal:
        spinner = Spinner("dots")

        def turning() -> Spinner:
            spinner.update(text=Text(line()))
            return spinner

        with live or Live(get_renderable=turning, console=console, transient=True):
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
