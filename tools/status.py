"""Where runs stand: `python -m tools.status RUN...`.

State, step, loss, speed, how long it still takes, attempts, the newest checkpoint, and how much of
the wall time went into steps that count.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tools.arguments import Parser, local_path
from tools.command import command_line
from tools.keep.attempt import ATTEMPTS_NAME, Attempt, read_attempts
from tools.submit import calling
from tools.submit.flags import digest_of, is_for
from train.checkpoint.directory import pointed_to
from train.claim import stored_config
from train.errors import UserError
from train.run_directory import RunDirectory
from train.storage.lease import held_by
from train.storage.place import Place
from train.watch.metrics import Metrics, read_metrics

_LEAST_COLUMNS: Final = 160
_LAST_STEPS: Final = 50
"""Of which speed and loss are told."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a run stands.

    Attributes:
        run: its directory.
        state: in words.
        step: last that was made.
        total_steps: at which it ends.
        loss: median of the last steps; None before the first.
        tokens_per_second: likewise.
        seconds_left: at that speed; None if it is not known, or nothing is left.
        attempts: how often its ranks were started.
        checkpoint: name of the newest; None without.
        effective_training_time: seconds of steps that count, over the wall time since the first
            start; None before the first step.
        last_verdict: what ended the last attempt that a keeper saw; None without one.
    """

    run: Path
    state: str
    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    attempts: int
    checkpoint: str | None
    effective_training_time: float | None
    last_verdict: str | None


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, and below it what ended the last attempts."""
    parser = Parser(prog="python -m tools.status", description=__doc__)
    parser.add_argument("runs", nargs="+", type=local_path, metavar="RUN", help="its directory")
    options = parser.parse_args(arguments)
    found: list[Status] = []
    faults: list[str] = []
    for run in options.runs:
        try:
            found.append(status_of(run, now=time.time()))
        except UserError as error:
            faults.append(str(error))
    names = ("run", "state", "step", "loss", "tokens/s", "left", "starts", "saved", "effective")
    table = Table(*names)
    for each in found:
        table.add_row(
            *(str(each.run), each.state, f"{each.step:,} of {each.total_steps:,}"),
            "–" if each.loss is None else f"{each.loss:.3f}",
            "–" if each.tokens_per_second is None else f"{each.tokens_per_second:,.0f}",
            "–" if each.seconds_left is None else span(each.seconds_left),
            *(str(each.attempts), each.checkpoint or "–"),
            "–" if each.effective_training_time is None else f"{each.effective_training_time:.1%}",
        )
    console = Console(highlight=False)
    # A pipe, or a narrow terminal, gets whole names.
    console.width = max(console.width, _LEAST_COLUMNS)
    if found:
        console.print(table)
    for each in found:
        if each.last_verdict is not None:
            console.print(f"{each.run}: {each.last_verdict}", markup=False)
    if faults:
        raise UserError("\n".join(faults))


def status_of(run: Path, *, now: float) -> Status:
    """Where a run stands.

    Args:
        run: its directory.
        now: wall-clock time in Unix seconds.

    Raises:
        DataError: it is no run's directory, or damaged.
    """
    directory = RunDirectory(run)
    attempts = read_attempts(run / ATTEMPTS_NAME)
    if not directory.metrics.exists() and (why := _before_metrics(run, attempts)) is not None:
        raise UserError(f"{run} {why}")
    metrics = read_metrics(directory.metrics)
    if not metrics.runs:
        raise UserError(f"{run} has begun no run yet: wait for its first step")
    last = metrics.runs[-1]
    checkpoints = stored_config(directory).checkpoints_of(directory)
    steps = metrics.train[-_LAST_STEPS:]
    step = metrics.train[-1].step if metrics.train else last.step
    seconds = sorted(record.step_seconds for record in steps)
    is_complete = step >= last.total_steps and directory.summary.exists()
    state, lives = ("complete", False) if is_complete else state_of(checkpoints, attempts)
    job = next((each.job for each in reversed(attempts) if each.job), None)
    if not is_complete and not lives and job is not None and (queued := calling.state_of(job)):
        state = f"{queued.lower()} (Slurm job {job})"
    verdict = attempts[-1].verdict if attempts else None
    is_told = verdict is not None and verdict.kind not in ("complete", "stopped by a signal")
    left = (last.total_steps - step) * seconds[len(seconds) // 2] if seconds else None
    return Status(
        run=run,
        state=state,
        step=step,
        total_steps=last.total_steps,
        loss=sorted(record.loss for record in steps)[len(steps) // 2] if steps else None,
        tokens_per_second=steps_speed(metrics) if steps else None,
        seconds_left=left or None,
        attempts=max(len(attempts), len(metrics.runs)),
        checkpoint=newest(checkpoints),
        effective_training_time=effective(metrics, attempts, now=now, lives=lives),
        last_verdict=verdict.sentence if is_told and verdict is not None else None,
    )


def _before_metrics(run: Path, attempts: Sequence[Attempt]) -> str | None:
    """What is known of a run that has no metrics; None if nothing is."""
    if attempts:
        times = f"{len(attempts)} attempt(s)"
        return f"has made no step in {times}; the last one: {attempts[-1].verdict.sentence}"
    with contextlib.suppress(UserError):  # without Slurm
        mine = digest_of(run)
        for job in calling.jobs():
            if is_for(job.comment, mine):
                state = job.state.lower()
                return f"has begun no run yet: its Slurm job {job.number} is {state}"
    return None


def newest(checkpoints: Place) -> str | None:
    """Name of the newest checkpoint; None without, or where the store does not answer."""
    with contextlib.suppress(OSError):
        return pointed_to(checkpoints)
    return None


def state_of(checkpoints: Place, attempts: Sequence[Attempt]) -> tuple[str, bool]:
    """What a run that is not complete is at, in words, and whether it runs."""
    try:
        holder, lives = held_by(checkpoints)
    except OSError as error:
        return f"unknown: {error}", False
    if holder is not None and lives is not False:
        return f"running ({holder.host})" if lives else f"running, it seems ({holder.host})", True
    if holder is not None:
        return "died", False
    return attempts[-1].verdict.kind if attempts else "stopped", False


def steps_speed(metrics: Metrics) -> float:
    """Tokens a second, the median of the last steps."""
    speeds = sorted(record.tokens_per_second for record in metrics.train[-_LAST_STEPS:])
    return speeds[len(speeds) // 2]


def effective(
    metrics: Metrics, attempts: Sequence[Attempt], *, now: float, lives: bool
) -> float | None:
    """Share of the wall time that went into steps that count."""
    if not metrics.train:
        return None
    ends = [each.ended for each in attempts]
    # Without a keeper the end of the last start is not known: its steps at least were made.
    made = sum(each.step_seconds for each in metrics.train if each.step > metrics.runs[-1].step)
    ended = now if lives else max([*ends, metrics.runs[-1].started + made])
    # Of starts from one step the last one's record counts; a keeper has seen all of them.
    started = min([metrics.runs[0].started, *(each.started for each in attempts)])
    return min(1.0, metrics.training_seconds / max(ended - started, 1e-9))


def span(seconds: float) -> str:
    """A duration in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}"


if __name__ == "__main__":
    sys.exit(main())
