"""Slurm's own commands, as far as submitting needs them."""

import contextlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from train.errors import UserError

_SECONDS: Final = 60.0
_ASK_SECONDS: Final = 10.0
_DEFAULTS: Final = re.compile(r"(SQUEUE|SCANCEL)_.*|SBATCH_(WAIT|ARRAY_INX)")
"""Variables by which a user has squeue leave out jobs, scancel ask back, and sbatch wait."""
_JOB: Final = re.compile(r"\s*([0-9]+) ([0-9]+) ([A-Z_]+)(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job in the queue.

    Attributes:
        number: of it.
        array: of an array's task the number of the array; else the same.
        state: as Slurm names it.
        comment: that it was given.
    """

    number: int
    array: int
    state: str
    comment: str


def plainly(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Slurm's commands do what they are told, and nothing besides."""
    return {k: value for k, value in environment.items() if _DEFAULTS.fullmatch(k) is None}


def jobs() -> list[Job]:
    """Jobs of this user that wait or run.

    Raises:
        UserError: Slurm does not answer.
    """
    text = _called(["squeue", "--me", "--noheader", "--format=%A %F %T %k"], environment={})
    found: list[Job] = []
    for line in text.split("\n"):
        # Jobs of others' making may have any comment, one of several lines, too.
        if (parts := _JOB.fullmatch(line)) is not None:
            number, array, state, comment = parts.groups()
            found.append(
                Job(number=int(number), array=int(array), state=state, comment=comment.strip())
            )
    return found


def state_of(job: str) -> str | None:
    """State of a job, anybody's; None where it is not in the queue, or there is no Slurm."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    with contextlib.suppress(UserError):
        return next(iter(_called(command, environment={}, seconds=_ASK_SECONDS).split()), None)
    return None


def submit(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Submit a job.

    Args:
        command: sbatch and its arguments.
        environment: variables besides this process's own.

    Returns:
        Its number.

    Raises:
        UserError: Slurm does not take it.
    """
    said = _called(command, environment=environment)
    number = said.strip().partition(";")[0]
    if not number.isdecimal():
        raise UserError(f"sbatch: says {said.strip()!r}, which is no number of a job")
    return int(number)


def tried(command: Sequence[str]) -> None:
    """Ask whether Slurm would take a job, without submitting it.

    Args:
        command: sbatch and its arguments.

    Raises:
        UserError: it would not.
    """
    _called([command[0], "--test-only", *command[1:]], environment={})


def cancel(numbers: Sequence[int]) -> None:
    """Take jobs back.

    Raises:
        UserError: Slurm does not.
    """
    _called(["scancel", *map(str, numbers)], environment={})


def _called(
    command: Sequence[str], *, environment: Mapping[str, str], seconds: float = _SECONDS
) -> str:
    name = command[0]
    try:
        done = subprocess.run(
            command,
            env={**plainly(os.environ), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except FileNotFoundError:
        raise UserError(
            f"{name}: is not found: submit on a host of the cluster, or try a lab with "
            'eval "$(python -m tools.lab slurm up)"'
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{name}: Slurm does not answer for {seconds:.0f} s: try again") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"ends with {done.returncode}"]
        reason = lines[-1].removeprefix(f"{name}: ")
        raise UserError(f"{name}: {re.sub('^(error|fatal): ', '', reason)}")
    return done.stdout
