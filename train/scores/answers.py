"""What a model has answered, kept in a file, so that nothing is computed twice.

One process writes it at a time, which a lock beside it sees to.

One line of JSON an answer, under the hash of weights and request; each is whole when it is there. A
process that is killed loses the batch that it was computing, and a cut last line is left out.
"""

import os
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from train.errors import DataError, InUseError
from train.scores.request import Likelihood
from train.storage.appended import AppendedFile
from train.storage.host_lock import UNSUPPORTED, try_lock
from train.storage.record import Count, Record, fault_of

_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_LogLikelihood = Annotated[float, Field(le=0, allow_inf_nan=False)]


class _Likelihood(Record):
    kind: Literal["likelihood"] = "likelihood"
    key: _Key
    log_likelihood: _LogLikelihood
    tokens: Count
    is_greedy: bool


class _Generated(Record):
    kind: Literal["generated"] = "generated"
    key: _Key
    tokens: list[Count]


Answer = Likelihood | list[int]
"""A likelihood, or generated tokens."""

_LINE: Final = TypeAdapter[_Likelihood | _Generated](
    Annotated[_Likelihood | _Generated, Field(discriminator="kind")]
)


class Answers:
    """Answers by key.

    Args:
        path: of the file; made where it is missing. None keeps nothing.

    Raises:
        DataError: a line of it is damaged.
        InUseError: another process writes it.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path | None):
        self._found: dict[str, Answer] = {}
        self._file: AppendedFile | None = None
        self._lock: int | None = None  # until the process ends, if nobody closes it
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            self._read(path)
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path) -> None:
        self._file = AppendedFile(path)
        content = self._file.read()
        self._file.truncate(whole := content.rfind(b"\n") + 1)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                record = _LINE.validate_json(line, strict=True)
            except ValidationError as error:
                raise DataError(
                    f"{path}:{number} is damaged ({fault_of(error)}): remove the line, and what it "
                    "held is computed again"
                ) from None
            self._found[record.key] = _answer(record)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Answer:
        return self._found[key]

    def __len__(self) -> int:
        return len(self._found)

    def add(self, answers: dict[str, Answer]) -> None:
        """Keep answers."""
        self._found |= answers
        if self._file is not None and answers:
            lines = [_record(key, answer).model_dump_json() for key, answer in answers.items()]
            self._file.append("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            os.close(self._lock)


def _locked(path: Path) -> int | None:
    """The descriptor of a file's lock; None where the file system has none."""
    try:
        found = try_lock(path.with_name(f"{path.name}.lock"))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    if found is None:
        raise InUseError(
            f"{path} is written by another evaluation: wait for its end, or name another directory "
            "with --scores"
        )
    return found


def _answer(record: _Likelihood | _Generated) -> Answer:
    if isinstance(record, _Generated):
        return record.tokens
    return Likelihood(
        log_likelihood=record.log_likelihood, tokens=record.tokens, is_greedy=record.is_greedy
    )


def _record(key: str, answer: Answer) -> _Likelihood | _Generated:
    if isinstance(answer, list):
        return _Generated(key=key, tokens=answer)
    return _Likelihood(
        key=key,
        log_likelihood=answer.log_likelihood,
        tokens=answer.tokens,
        is_greedy=answer.is_greedy,
    )
