"""Records of a run, and the file that holds them: `metrics.jsonl`, one JSON object a line."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from train.errors import DataError
from train.storage import record as stored
from train.storage.appended import AppendedFile
from train.storage.record import Count, content_of, fault_of

GIB_BYTES = 2**30
_BYTES_AT_MOST = 1 << 32
_YEAR_9999_SECONDS = 253_370_764_800

Real = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""JSON has no NaN and no infinity: they become null, and null reads as NaN."""
Finite = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
"""What is measured, and never anything else; some thousand years, in seconds."""
Operations = Annotated[float, Field(ge=0, le=1e24, allow_inf_nan=False)]
"""Of floating-point arithmetic."""
Moment = Annotated[float, Field(ge=0, lt=_YEAR_9999_SECONDS, allow_inf_nan=False)]


WANDB_UNREACHABLE: Final = "W&B is not reachable, logging offline"
"""What the note begins with that says so of the rest of a start."""


class _Record(stored.Record):
    model_config = ConfigDict(allow_inf_nan=True)

    step: Count


class RunRecord(_Record):
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
        wandb_run_id: under which it is at W&B; None in records of earlier versions, as the next.
        wandb_mode: how this start tells W&B of it, if a server can be reached.
        identity: a hash of what decides the run's numbers.
        flops_per_token: as `train.watch.utilisation` counts; None where the peak is.
        peak_flops: operations a second of one rank's device, as its maker gives them; None where
            they are not known.
        bubble_fraction: of a step that the pipeline's schedule leaves idle, at equal stages.
    """

    kind: Literal["run"] = "run"
    total_steps: Count
    name: str
    num_ranks: Count
    num_threads: Count
    precision: str
    num_parameters: Count
    machine: str
    started: Moment
    wandb_run_id: str | None = None
    wandb_mode: Literal["disabled", "offline", "online"] | None = None
    identity: str | None = None
    flops_per_token: Operations | None = None
    peak_flops: Operations | None = None
    bubble_fraction: Finite | None = None

    def mfu(self, tokens_per_second: float) -> float | None:
        """Share of the peak at a speed of all ranks; None where the peak is not known."""
        if self.flops_per_token is None or not self.peak_flops:
            return None
        return tokens_per_second * self.flops_per_token / (self.peak_flops * self.num_ranks)


class TrainRecord(_Record):
    """One optimiser step, over the global batch.

    Attributes:
        step: steps done, this one included.
        loss: nats a scored token.
        first_of_span_loss: the same over first tokens of spans; None if there was no such token.
        other_loss: the same over the other tokens; None if there was no such token.
        learning_rate: of the step.
        gradient_norm: before clipping.
        gradient_norms: those of the blocks, and of the layers outside of them, by name; None in
            steps between those of `watch.norms_every_steps`.
        tokens: decoder slots.
        scored_tokens: slots that carry loss.
        step_seconds: duration of the step, waiting for data included.
        data_wait_seconds: part of it spent waiting for data.
        memory_bytes: peak memory of rank 0.
        by_source: loss of each source by name, of those with scored tokens in it; None where there
            is one source.
    """

    kind: Literal["train"] = "train"
    loss: Real
    first_of_span_loss: Real | None
    other_loss: Real | None
    learning_rate: Real
    gradient_norm: Real
    gradient_norms: dict[str, Real] | None = None
    tokens: Count
    scored_tokens: Count
    step_seconds: Finite
    data_wait_seconds: Finite
    memory_bytes: Count
    by_source: dict[str, Real] | None = None

    @property
    def tokens_per_second(self) -> float:
        """Decoder slots a second, all ranks together."""
        return self.tokens / max(self.step_seconds, 1e-9)

    @property
    def data_wait_fraction(self) -> float:
        """Share of the step that waited for data."""
        return self.data_wait_seconds / max(self.step_seconds, 1e-9)


class _Validation(_Record):
    """One pass over validation sequences after `step` steps; losses as in `TrainRecord`.

    Attributes:
        by_source: loss of each source's validation split by name; None where there is one source.
    """

    loss: Real
    first_of_span_loss: Real | None
    other_loss: Real | None
    scored_tokens: Count
    seconds: Finite
    by_source: dict[str, Real] | None = None


class ValidationRecord(_Validation):
    """A pass over the first sequences of each source, always the same ones.

    Attributes:
        sequences: how many they were, of all sources; None in records of earlier versions.
    """

    kind: Literal["validation"] = "validation"
    sequences: Count | None = None


class WholeValidationRecord(_Validation):
    """A pass over all sequences of each source, at the end of a run.

    Attributes:
        sequences: how many they were, of all sources.
    """

    kind: Literal["whole_validation"] = "whole_validation"
    sequences: Count


class BaselineRecord(_Record):
    """Cross-entropy in nats that the corpus's unigram distribution has on the validation tokens."""

    kind: Literal["baseline"] = "baseline"
    unigram_entropy: Finite


class SampleRecord(_Record):
    """A text that the model generated after a prompt."""

    kind: Literal["sample"] = "sample"
    prompt: str
    text: str


class ScoreRecord(_Record):
    """What the model made of a task after `step` steps.

    Attributes:
        task: its name.
        metric: the first of the task.
        score: from 0 to 1.
        standard_error: of it; None where it is unknown.
        rows: how many were asked.
        seconds: that it took.
    """

    kind: Literal["score"] = "score"
    task: str
    metric: str
    score: Real
    standard_error: Real
    rows: Count
    seconds: Finite


class LeftOutRecord(_Record):
    """A step that counts for nothing, whatever was recorded of it before.

    Attributes:
        reason: as in `train.wrong_numbers.left_out`.
    """

    kind: Literal["left_out"] = "left_out"
    reason: str


class SavedRecord(_Record):
    """A checkpoint that training has handed over.

    Attributes:
        seconds: that it waited for that; what is written in the background does not count.
    """

    kind: Literal["saved"] = "saved"
    seconds: Finite


class NoteRecord(_Record):
    """Something a reader of the run should know."""

    kind: Literal["note"] = "note"
    text: str


Record = (
    RunRecord
    | TrainRecord
    | ValidationRecord
    | WholeValidationRecord
    | BaselineRecord
    | SampleRecord
    | ScoreRecord
    | LeftOutRecord
    | SavedRecord
    | NoteRecord
)
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])

R = TypeVar("R", bound=_Record)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a run recorded, each list in rising order of steps and without repeated steps.

    Attributes:
        runs: starts of the run.
        train: optimiser steps.
        validation: passes over the first sequences of validation.
        whole_validation: the last pass over all of them, if there was one.
        samples: generated texts, several at a step.
        scores: of tasks, several at a step.
        left_out: steps that count for nothing; `train` has none of them.
        saved: checkpoints.
        notes: notes, several at a step.
        baseline: the unigram baseline, if it was recorded.
        wandb_mode: how its last start tells W&B of it by now; None if that is not told.
    """

    runs: list[RunRecord] = field(default_factory=list)
    train: list[TrainRecord] = field(default_factory=list)
    validation: list[ValidationRecord] = field(default_factory=list)
    whole_validation: WholeValidationRecord | None = None
    samples: list[SampleRecord] = field(default_factory=list)
    scores: list[ScoreRecord] = field(default_factory=list)
    left_out: list[LeftOutRecord] = field(default_factory=list)
    saved: list[SavedRecord] = field(default_factory=list)
    notes: list[NoteRecord] = field(default_factory=list)
    baseline: BaselineRecord | None = None
    wandb_mode: str | None = None

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Steps and their losses."""
        return [(record.step, record.loss) for record in self.train]

    @property
    def training_seconds(self) -> float:
        """Duration of all steps."""
        return sum(record.step_seconds for record in self.train)

    @property
    def tokens_per_second(self) -> float:
        """Median of the steps."""
        return statistics.median(record.tokens_per_second for record in self.train)

    @property
    def data_wait_fraction(self) -> float:
        """Share of the time in steps that waited for data."""
        waited = sum(record.data_wait_seconds for record in self.train)
        return waited / max(self.training_seconds, 1e-9)


class MetricsFile:
    """Appends records to `metrics.jsonl`, each whole, so that a kill loses at most one.

    Args:
        path: the file; created where missing. A line that a kill cut short is dropped.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendedFile(path)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def write(self, record: Record) -> bool:
        """Appends one record. Floats keep every bit; NaN and infinities become null.

        Returns:
            Whether the file had been removed; what was in it is written again.

        Raises:
            OSError: it cannot be written now; it is tried again with the next record.
        """
        return self._file.append(record.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def parse_record(line: bytes) -> Record | None:
    """What a line of `metrics.jsonl` says; None if it is of a kind that a later version has.

    Raises:
        ValidationError: it is damaged.
    """
    try:
        return _RECORD.validate_json(line, strict=True)
    except ValidationError as error:
        if error.errors()[0]["type"] == "union_tag_invalid":
            return None
        raise


def read_metrics(path: Path) -> Metrics:
    """Reads `metrics.jsonl`, keeping the last record of each step of each kind.

    A resumed run repeats the steps after its checkpoint; what it wrote last is what counts. A last
    line that was cut short by a kill is left out.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, or a line that is not the last one is damaged.
    """
    try:
        lines = content_of(path, limit_bytes=_BYTES_AT_MOST).split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: is this the directory of a run?") from None
    latest: dict[tuple[str, int, str | None], Record] = {}
    wandb_mode: str | None = None
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = parse_record(line)
        except ValidationError as error:
            if number == len(lines):
                break
            reason = fault_of(error)
            raise DataError(
                f"{path}:{number} is damaged: {reason}; delete this line to go on"
            ) from None
        if record is None:
            continue
        # A step has one record of a kind, but any number of texts, and of tasks.
        text = next(
            (getattr(record, n) for n in ("prompt", "text", "task") if hasattr(record, n)), None
        )
        latest[record.kind, record.step, text] = record
        if isinstance(record, LeftOutRecord):
            latest.pop(("train", record.step, None), None)
        elif isinstance(record, RunRecord):
            wandb_mode = record.wandb_mode
        elif isinstance(record, NoteRecord) and record.text.startswith(WANDB_UNREACHABLE):
            wandb_mode = "offline"
    records = sorted(latest.values(), key=lambda record: record.step)

    def of(kind: type[R]) -> list[R]:
        return [record for record in records if isinstance(record, kind)]

    return Metrics(
        runs=of(RunRecord),
        train=of(TrainRecord),
        validation=of(ValidationRecord),
        whole_validation=next(iter(of(WholeValidationRecord)[-1:]), None),
        samples=of(SampleRecord),
        scores=of(ScoreRecord),
        left_out=of(LeftOutRecord),
        saved=of(SavedRecord),
        notes=of(NoteRecord),
        baseline=next(iter(of(BaselineRecord)[-1:]), None),
        wandb_mode=wandb_mode,
    )


def perplexity(loss: float) -> float:
    """Perplexity of a loss in nats; infinite where it does not fit a float."""
    return math.inf if loss > 700 else math.exp(loss)
