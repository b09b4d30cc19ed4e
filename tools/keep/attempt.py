"""Attempts: one start of the ranks after another, as the run's directory remembers them."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, TypeAdapter

from train.errors import DataError
from train.run_directory import ATTEMPTS_NAME
from train.storage.appended import AppendedFile
from train.storage.record import Count, Record, content_of, parse
from train.watch.metrics import Moment

_BYTES_AT_MOST: Final = 1 << 28

Kind = Literal[
    "complete",
    "stopped by a signal",
    "interrupted",
    "user error",
    "dead",
    "out of memory",
    "fault",
    "not finite",
    "hardware",
    "stopped",
    "stuck in reading",
    "stuck in saving",
    "stuck",
    "collective the others did not enter",
    "slow",
    "lost a peer",
    "unknown",
]


class Verdict(Record):
    """What ended an attempt.

    Attributes:
        kind: of the end.
        rank: that is to blame; None where none is, or none can be told.
        node: of that rank.
        section: in which it was.
        step: at which it was.
        is_sure: whether the facts leave no other reading.
        sentence: all of it for a person.
        error: class and message of what a rank raised; None where none did.
        classes: of that error, from its own class up.
    """

    kind: Kind
    rank: Count | None = None
    node: str | None = None
    section: str | None = None
    step: Count | None = None
    is_sure: bool = True
    sentence: str
    error: str | None = None
    classes: list[str] = Field(default_factory=list)


class Attempt(Record):
    """One start of all ranks.

    Attributes:
        started: wall-clock time in Unix seconds.
        ended: likewise.
        keeper: that made it, by its host, process and time.
        job: of Slurm; None without.
        nodes: where the ranks were.
        left_out: by name, why there were none on the job's other nodes.
        gone: nodes that did not answer when it had ended.
        overrides: of the configuration, for the layout that went with so many nodes.
        slow_ranks: ranks that computed longer than the median, and how many times as long.
        num_ranks: processes.
        first_step: after which it went on; None where it never came so far.
        last_step: highest step that was begun; None likewise.
        status: highest exit status of the ranks, 128 + its number for a signal.
        verdict: what ended it.
        seconds: of the first rank, by section.
        longest_seconds: of any rank, by section, of what ended.
    """

    started: Moment
    ended: Moment
    keeper: str = ""
    job: str | None = None
    nodes: list[str] = Field(default_factory=list)
    left_out: dict[str, str] = Field(default_factory=dict)
    gone: list[str] = Field(default_factory=list)
    overrides: list[str] = Field(default_factory=list)
    slow_ranks: dict[int, float] = Field(default_factory=dict)
    num_ranks: Count
    first_step: Count | None = None
    last_step: Count | None = None
    status: int
    verdict: Verdict
    seconds: dict[str, float] = Field(default_factory=dict)
    longest_seconds: dict[str, float] = Field(default_factory=dict)


_ATTEMPT: Final = TypeAdapter(Attempt)


class Attempts:
    """All attempts of a run, oldest first; kept in its directory once that is known.

    What cannot be read or written there is told once, and remembered in this process alone.

    Args:
        tell: takes a sentence for whoever watches.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.all: list[Attempt] = []
        self._tell = tell
        self._directory: Path | None = None
        self._path: Path | None = None
        self._num_kept = 0

    def found_in(self, run_directory: Path) -> None:
        """Read what earlier keepers have left there; the first call counts."""
        if self._directory is not None:
            return
        self._directory, path = run_directory, run_directory / ATTEMPTS_NAME
        try:
            earlier = read_attempts(path)
        except (DataError, OSError) as error:
            self._tell(f"{error}: attempts are not kept")
            return
        self.all[:0] = earlier
        self._num_kept = len(earlier)
        self._path = path

    def add(self, attempt: Attempt) -> None:
        """Remember one more."""
        self.all.append(attempt)
        if self._path is None or not self._path.parent.is_dir():
            return
        try:
            with contextlib.closing(AppendedFile(self._path)) as file:
                text = file.read()
                file.truncate(text.rfind(b"\n") + 1)
                for each in self.all[self._num_kept :]:
                    file.append(each.model_dump_json().encode() + b"\n")
                    self._num_kept += 1
                file.settle()
        except OSError as error:
            self._tell(f"{self._path} cannot be written ({error.strerror}): it lacks attempts")


def read_attempts(path: Path) -> list[Attempt]:
    """The attempts that a file tells of, oldest first; none if there is no such file.

    Raises:
        DataError: it is no list of attempts.
    """
    try:
        text = content_of(path, limit_bytes=_BYTES_AT_MOST)
    except FileNotFoundError:
        return []
    # A keeper that was killed may have left half a line.
    whole = text[: text.rfind(b"\n") + 1]
    return [
        parse(_ATTEMPT, line, name=str(path), error=DataError, remedy="move it away")
        for line in whole.splitlines()
    ]
