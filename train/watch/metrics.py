"""Records of a run, and the file that holds them: `metrics.jsonl`, one JSON object a line."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from train.errors import DataError

GIB_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One start of the run; a resumed run has several.

    Attributes:
        step: steps done before this start; 0 for a new run.
        total_steps: step at which the run ends.
        name: name of the run.
        num_ranks: processes.
        num_threads: CPU threads of each process.
        precision: such as "fp32" or "bf16".
        num_parameters: parameters of the model, trained or not.
        machine: processor or accelerator, and its software, in words.
        started: wall-clock time in Unix seconds.
    """

    kind: ClassVar[str] = "run"
    step: int
    total_steps: int
    name: str
    num_ranks: int
    num_threads: int
    precision: str
    num_parameters: int
    machine: str
    started: float


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """One optimiser step, over the global batch.

    Attributes:
        step: steps done, this one included.
        loss: nats a scored token.
        first_of_span_loss: the same over first tokens of spans; None if there was no such token.
        other_loss: the same over the other tokens; None if there was no such token.
        learning_rate: of the step.
        gradient_norm: before clipping.
        tokens: decoder slots.
        scored_tokens: slots that carry loss.
        step_seconds: duration of the step, waiting for data included.
        data_wait_seconds: part of it spent waiting for data.
        memory_bytes: peak memory of rank 0.
    """

    kind: ClassVar[str] = "train"
    step: int
    loss: float
    first_of_span_loss: float | None
    other_loss: float | None
    learning_rate: float
    gradient_norm: float
    tokens: int
    scored_tokens: int
    step_seconds: float
    data_wait_seconds: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """One pass over the validation set after `step` steps; losses as in `TrainRecord`.

    Attributes:
        by_source: loss of each source's validation split by name; None where there is one source.
    """

    kind: ClassVar[str] = "validation"
    step: int
    loss: float
    first_of_span_loss: float | None
    other_loss: float | None
    scored_tokens: int
    seconds: float
    by_source: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class BaselineRecord:
    """Cross-entropy in nats that the corpus's unigram distribution has on the validation tokens."""

    kind: ClassVar[str] = "baseline"
    step: int
    unigram_entropy: float


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """A text that the model generated after a prompt."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class NoteRecord:
    """Something a reader of the run should know."""

    kind: ClassVar[str] = "note"
    step: int
    text: str


Record = RunRecord | TrainRecord | ValidationRecord | BaselineRecord | SampleRecord | NoteRecord

R = TypeVar("R", RunRecord, TrainRecord, ValidationRecord, SampleRecord, NoteRecord, BaselineRecord)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a run recorded, each list in rising order of steps and without repeated steps.

    Attributes:
        runs: starts of the run.
        train: optimiser steps.
        validation: validation passes.
        samples: generated texts, several at a step.
        notes: notes, several at a step.
        baseline: the unigram baseline, if it was recorded.
    """

    runs: list[RunRecord] = field(default_factory=list)
    train: list[TrainRecord] = field(default_factory=list)
    validation: list[ValidationRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)
    notes: list[NoteRecord] = field(default_factory=list)
    baseline: BaselineRecord | None = None


class MetricsFile:
    """Appends records to `metrics.jsonl`, each whole and flushed, so that a kill loses at most one.

    Args:
        path: the file; created where missing.
    """

    def __init__(self, path: Path) -> None:
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Appends one record. Floats keep every bit; NaN and infinities become null."""
        values = {"kind": record.kind, **dataclasses.asdict(record)}
        finite = {name: _finite_or_none(value) for name, value in values.items()}
        self._file.write(json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> Metrics:
    """Reads `metrics.jsonl`, keeping the last record of each step of each kind.

    A resumed run repeats the steps after its checkpoint; what it wrote last is what counts. A last
    line that was cut short by a kill is left out. A null loss reads as NaN.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, or a line that is not the last one is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: is this the directory of a run?") from None
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            values = json.loads(line)
            # A step has one record of a kind, but any number of texts.
            key = (values["kind"], values["step"], values.get("prompt", values.get("text")))
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise DataError(f"{path}:{number} is damaged: delete this line to go on") from None
        latest[key] = values
    baselines = _of_kind(BaselineRecord, latest)
    return Metrics(
        runs=_of_kind(RunRecord, latest),
        train=_of_kind(TrainRecord, latest),
        validation=_of_kind(ValidationRecord, latest),
        samples=_of_kind(SampleRecord, latest),
        notes=_of_kind(NoteRecord, latest),
        baseline=baselines[-1] if baselines else None,
    )


def perplexity(loss: float) -> float:
    """Perplexity of a loss in nats; infinite where it does not fit a float."""
    return math.inf if loss > 700 else math.exp(loss)


def _of_kind(record_type: type[R], latest: Mapping[tuple[Any, ...], dict[str, Any]]) -> list[R]:
    """Records of one type by rising step; unknown fields, of a later version, are left out."""
    nan_fields = {f.name for f in dataclasses.fields(record_type) if f.type is float}
    names = {f.name for f in dataclasses.fields(record_type)}
    records = []
    for values in latest.values():
        if values["kind"] == record_type.kind:
            known = {name: value for name, value in values.items() if name in names}
            known |= {name: math.nan for name in nan_fields if known.get(name) is None}
            records.append(record_type(**known))
    return sorted(records, key=lambda record: record.step)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_torn_line(path: Path) -> None:
    """Cuts off what follows the last newline, so that the next record starts a line of its own."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())
