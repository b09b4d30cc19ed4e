"""Runs commands side by side, each behind those that it needs, and says how far it is."""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.comparison.jobs import Job
from tools.endings import end_with_parent, told_to_stop
from train.errors import UserError
from train.exit_status import ExitStatus
from train.watch.progress import format_seconds

GO_ON: Final = "stopped; the same command goes on from here"
_POLL_SECONDS: Final = 0.2
_TOLD_LINES: Final = 15


def run_all(
    jobs: Sequence[Job], *, side_by_side: int, logs: Path, report: Callable[[str], None]
) -> int:
    """Run what has not run yet.

    Args:
        jobs: in the order in which they should run, each behind what it needs.
        side_by_side: how many at a time; they share the cores.
        logs: directory for what each prints.
        report: tells a line.

    Returns:
        How many ran.

    Raises:
        UserError: one failed; the others have been stopped, and go on when called again.
        KeyboardInterrupt: a signal came; the same.
    """
    done = {job.name for job in jobs if job.is_done()}
    waiting = [job for job in jobs if job.name not in done]
    planned = sum(job.seconds for job in waiting) / side_by_side
    if not waiting:
        return 0
    report(
        f"{len(done)} of {len(jobs)} commands have run; the others take about "
        f"{format_seconds(planned)} on {side_by_side} cores as the plan knows them"
    )
    logs.mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // side_by_side)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
    num_run, spent, started = 0, 0.0, time.monotonic()
    with told_to_stop(GO_ON) as stopping:
        try:
            while waiting or running:
                for job in [job for job in waiting if done.issuperset(job.after)]:
                    if len(running) < side_by_side:
                        waiting.remove(job)
                        with stopping.later():
                            running[_start(job, logs, environment)] = job, time.monotonic()
                time.sleep(_POLL_SECONDS)
                for process in [*running]:
                    before = _processor_seconds()
                    if process.poll() is None:
                        continue
                    job, since = running.pop(process)
                    _require_done(job, process.returncode, logs)
                    done.add(job.name)
                    num_run += 1
                    spent += job.seconds
                    left = sum(each.seconds for each in waiting)
                    left += sum(each.seconds for each, _ in running.values()) / 2
                    pace = (time.monotonic() - started) / spent
                    report(
                        f"{len(done)}/{len(jobs)} {job.name}: "
                        f"{format_seconds(time.monotonic() - since)}, "
                        f"{_processor_seconds() - before:.0f} s of a core; about "
                        f"{format_seconds(left * pace)} left"
                    )
        finally:
            _stop(running)
    return num_run


def _processor_seconds() -> float:
    """Of all commands that are over."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _start(job: Job, logs: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    job.prepare()
    with _log(job, logs).open("ab") as log:
        return subprocess.Popen(
            job.command,
            env={**environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us to pass on
            preexec_fn=end_with_parent,
        )


def _require_done(job: Job, code: int, logs: Path) -> None:
    if code == ExitStatus.COMPLETE and job.is_done():
        return
    log = _log(job, logs)
    if code == ExitStatus.SAVED:
        raise KeyboardInterrupt(GO_ON)
    lines = log.read_text(errors="replace").splitlines()[-_TOLD_LINES:]
    raise UserError(
        "\n".join([*lines, f"{job.name} failed (status {code}): see {log}; the others are saved"])
    )


def _log(job: Job, logs: Path) -> Path:
    return logs / f"{job.name.replace(' ', '_').replace(',', '')}.log"


def _stop(running: Mapping[subprocess.Popen[bytes], object]) -> None:
    """End what runs: training saves first."""
    for process in running:
        process.terminate()
    for process in running:
        process.wait()
