"""How far work is: live on a terminal, lines elsewhere."""

import io
import threading

import pytest
from rich.console import Console

from tools import progress


@pytest.mark.parametrize("is_terminal", [False, True])
def test_it_is_said_again_and_again_until_the_work_ends(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.001)
    out, said, enough = io.StringIO(), list[int](), threading.Event()

    def line() -> str:
        said.append(len(said))
        if len(said) == 3:
            enough.set()
        return f"[red]{len(said)} of 3"

    with progress.now_and_then(Console(file=out, force_terminal=is_terminal), line):
        assert enough.wait(60)
    assert "[red]2 of 3" in out.getvalue(), "it is no markup"


def test_work_of_unknown_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.001)
    written = threading.Event()

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            written.set()
            return super().write(text)

    out = Out()
    with progress.busy(Console(file=out), "reading"):
        assert written.wait(60)
    assert out.getvalue().startswith("reading: 0 s so far\n")
