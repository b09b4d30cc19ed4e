"""A build whose parts are shared by the tasks of a Slurm array.

    whoever builds ── who does which parts ──▶ task 0, task 1, …
          ▲                                        │
          └──────── a note of each part ◀──────────┘

Whoever builds has the lease. It submits an array for each round of work, waits until all parts are
noted, and gives out again what a task left undone, because it was killed or a store refused it:
that has no note, however much of it was written. A task is the build's own command with `--task K`,
on any node that sees the same files. It looks at the sources as the build did, and does nothing
where they are others by now. Tasks read JSON, a tokenizer and arrays; nothing is pickled.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from tools.corpus.words import counted
from tools.corpus.workshop import Workshop
from tools.submit import calling
from tools.submit.flags import digest, digest_of
from train.errors import DataError, StorageError, UserError
from train.storage.diagnosis import DeniedError, MissingError

_POLL_SECONDS, _POLL_SECONDS_AT_MOST, _POLLS_OF_AGE = 1.0, 30.0, 20.0
"""Slurm is asked the less often, the longer an array has been there: every twentieth of its age."""
_SHARES: Final = "shares.json"
_FAULT: Final = "faults/{}.txt"
"""Of an array, by its number: what a user has to mend."""
_REFUSAL: Final = "faults/{}.store.txt"
"""Likewise: what a store said to a task, which it may not say to the next."""
_OURS: Final = (
    *("array", "comment", "cpus-per-task", "export", "job-name", "ntasks", "parsable"),
    *("test-only", "wait", "wrap"),
)
"""Flags of sbatch that a build needs as they are."""


class Shares(BaseModel):
    """Who does what.

    Attributes:
        kind: of the notes that are to be there afterwards.
        numbers: that each task is to see to, in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: str
    numbers: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class SlurmArray:
    """The array that does the work of a build.

    Attributes:
        tasks: of it, at most.
        arguments: of `python -m tools.corpus build`, as the build was called.
        flags: of sbatch, besides those that are set here.
        report: told what happens.
    """

    tasks: int
    arguments: tuple[str, ...]
    flags: tuple[str, ...] = ()
    report: Callable[[str], None] = print

    def __post_init__(self) -> None:
        """Refuse flags that are none, or that are set here."""
        for flag in self.flags:
            name = flag.removeprefix("--").partition("=")[0]
            if not flag.startswith("--") or not name:
                raise DataError(
                    f"--sbatch: {flag} is no flag such as --mem=8G: write it with both dashes"
                )
            # Slurm takes the beginning of a flag's name for the flag.
            if any(each.startswith(name) for each in _OURS):
                raise DataError(f"--sbatch: --{name} is set by the build: leave it out")

    def require(self, workers: int) -> None:
        """Ask Slurm whether it would take such an array.

        Args:
            workers: processes of each task.

        Raises:
            UserError: there is no Slurm, or it would not.
        """
        try:
            calling.tried(self._command(self.tasks, workers, comment="try"))
        except UserError as error:
            given = f" (--sbatch {shlex.join(self.flags)})" if self.flags else ""
            raise UserError(f"{error}{given}") from error

    def clear(self, workshop: Workshop) -> None:
        """End tasks that are left of a build here that was killed, and forget what they met.

        Raises:
            UserError: Slurm does not answer.
        """
        comment = _comment(workshop)
        told = False
        while left := {job.array for job in _live() if job.comment == comment}:
            if not told:
                self.report(f"{workshop.out}: ending jobs that are left of a build here")
                calling.cancel(sorted(left))
                told = True
            time.sleep(_POLL_SECONDS)
        # Numbers of jobs come again, once a cluster is set up anew.
        if (faults := (workshop.working / _FAULT).parent).exists():
            faults.remove()

    def spread(
        self, workshop: Workshop, kind: str, numbers: Sequence[int], *, workers: int
    ) -> Iterator[int]:
        """Have tasks do what is not noted yet.

        Args:
            workshop: where the notes are.
            kind: of the notes.
            numbers: that are wanted, in the order in which to begin them.
            workers: processes of each task.

        Yields:
            Each number, once it is noted.

        Raises:
            DataError: a task met what a user must mend, or an array brought nothing forth.
            UserError: Slurm does not take an array.
        """
        missing = list(numbers)
        while missing:
            shares = [missing[k :: self.tasks] for k in range(min(self.tasks, len(missing)))]
            content = Shares(kind=kind, numbers=shares).model_dump_json().encode()
            workshop.write(workshop.working / _SHARES, content)
            command = self._command(len(shares), workers, comment=_comment(workshop))
            job = calling.submit(command, {})
            before = len(missing)
            try:
                for done in _noted(workshop, kind, missing, job):
                    missing.remove(done)
                    yield done
            finally:
                with suppress(UserError):  # what is still there has nothing to do any more
                    calling.cancel([job])
            if len(missing) == before:
                if (refusal := workshop.read(workshop.working / _REFUSAL.format(job))) is not None:
                    raise DataError(refusal.decode())
                raise DataError(
                    f"no task of job {job} has finished a part: look into slurm-build-{job}_*.out; "
                    "perhaps they need more memory or time (--sbatch)"
                )
            if missing:
                undone = sum(bool({*share} & {*missing}) for share in shares)
                self.report(
                    f"{counted(undone, 'task')} of job {job} ended early; what they left undone is "
                    "given out again"
                )

    def _command(self, tasks: int, workers: int, *, comment: str) -> list[str]:
        called = shlex.join([sys.executable, "-m", "tools.corpus", "build"])
        return [
            "sbatch",
            "--parsable",
            "--job-name=build",
            f"--comment={comment}",
            f"--array=0-{tasks - 1}",
            "--ntasks=1",
            f"--cpus-per-task={workers}",
            "--requeue",
            "--open-mode=append",
            "--output=slurm-%x-%A_%a.out",
            "--export=ALL",
            *self.flags,
            f'--wrap=exec {called} --task="$SLURM_ARRAY_TASK_ID" {shlex.join(self.arguments)}',
        ]


def share(workshop: Workshop, task: int) -> tuple[str, list[int]]:
    """What a task has to do: the kind of notes, and the numbers of which it is to leave one.

    Raises:
        DataError: it has nothing to do.
    """
    content = workshop.read(workshop.working / _SHARES)
    try:
        shares = Shares.model_validate_json(content or b"")
        return shares.kind, shares.numbers[task]
    except (ValidationError, IndexError) as error:
        raise DataError(
            f"{workshop.out} has no work for a task {task}: build with --tasks, which submits them"
        ) from error


def tell_fault(workshop: Workshop, error: UserError) -> None:
    """Let whoever builds know what a user has to mend, where this is a task of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None and workshop.is_begun:
        lasts = not isinstance(error, StorageError) or isinstance(error, MissingError | DeniedError)
        name = _FAULT if lasts else _REFUSAL
        workshop.write(workshop.working / name.format(array), str(error).encode())


def _noted(workshop: Workshop, kind: str, missing: Sequence[int], job: int) -> Iterator[int]:
    """Numbers as they are noted, until all are or the array has ended.

    Raises:
        DataError: a task met what a user must mend.
    """
    waiting, begun = set(missing), time.monotonic()
    while waiting:
        is_there = _is_there(job)  # asked first: what is noted until then counts
        noted = workshop.noted(kind)
        if not is_there:
            noted |= workshop.noted_by_name(kind, waiting - noted)
        done = waiting & noted
        yield from sorted(done)
        waiting -= done
        fault = workshop.read(workshop.working / _FAULT.format(job))
        if fault is not None:
            raise DataError(fault.decode())
        if not is_there:
            return
        age = time.monotonic() - begun
        time.sleep(min(max(_POLL_SECONDS, age / _POLLS_OF_AGE), _POLL_SECONDS_AT_MOST))


def _live() -> list[calling.Job]:
    """Jobs that wait or run.

    What only completes does nothing any more, and may do so for hours where its node is in trouble.

    Raises:
        UserError: Slurm does not answer.
    """
    return [job for job in calling.jobs() if job.state != "COMPLETING"]


def _is_there(job: int) -> bool:
    """Whether any task of an array waits or runs, as far as Slurm can tell."""
    try:
        return any(each.array == job for each in _live())
    except UserError:
        return True  # it is asked again


def _comment(workshop: Workshop) -> str:
    root = workshop.root
    return f"corpus {digest(str(root)) if root.is_remote else digest_of(Path(root))}"
