"""Commands side by side: order, failures, signals, and what has run already."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from tools.comparison import schedule
from tools.comparison.jobs import Job
from tools.comparison.schedule import run_all
from train.errors import UserError


def job(directory: Path, name: str, *after: str, content: str = "[]") -> Job:
    """Copies a JSON file, and can fail at it."""
    given = directory / f"{name}.given"
    given.write_text(content)
    out = directory / f"{name}.json"
    return Job(
        name=name,
        arguments=("json.tool", str(given), str(out)),
        after=after,
        is_done=lambda: out.exists() and out.stat().st_size > 0,
        seconds=1,
    )


def test_commands_run_behind_what_they_need_and_once(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "b", "a"), job(tmp_path, "a"), job(tmp_path, "c", "a", "b")]
    told: list[str] = []
    assert run_all(jobs, side_by_side=2, logs=tmp_path / "logs", report=told.append) == 3
    times = [(tmp_path / f"{name}.json").stat().st_mtime_ns for name in "abc"]
    assert times == sorted(times)
    assert told[0].startswith("0 of 3 commands have run; the others take about 0:02")
    assert [line.split(":")[0] for line in told[1:]] == ["1/3 a", "2/3 b", "3/3 c"]
    (tmp_path / "b.json").unlink()
    assert run_all(jobs, side_by_side=2, logs=tmp_path / "logs", report=told.append) == 1
    assert run_all(jobs, side_by_side=2, logs=tmp_path / "logs", report=told.append) == 0


def test_a_failure_is_shown_and_nothing_behind_it_runs(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", content="{"), job(tmp_path, "b", "a")]
    with pytest.raises(UserError, match=r"(?s)Expecting property name.*a failed \(status 1\)"):
        run_all(jobs, side_by_side=2, logs=tmp_path / "logs", report=lambda line: None)
    assert not (tmp_path / "b.json").exists()


def test_a_command_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    idle = Job(name="idle", arguments=("this",), is_done=lambda: False, seconds=1)
    with pytest.raises(UserError, match=r"idle failed \(status 0\)"):
        run_all([idle], side_by_side=1, logs=tmp_path / "logs", report=lambda line: None)


WAITS = Job(
    name="waits",
    arguments=("http.server", "0", "--bind", "127.0.0.1"),
    is_done=lambda: False,
    seconds=1,
)


def require_stopped(logs: Path) -> None:
    """It is told to stop, and leaves nothing behind."""
    before = {*psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from here"):
        run_all([WAITS], side_by_side=1, logs=logs, report=lambda line: None)
    assert not {*psutil.Process().children()} - before, "it was ended"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_stops_what_runs(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "waits.log"

    def terminate() -> None:
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    require_stopped(log.parent)


def test_a_signal_stops_what_is_just_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "end_with_parent", lambda: os.kill(os.getppid(), signal.SIGTERM))
    require_stopped(tmp_path / "logs")
