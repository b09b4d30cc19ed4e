"""Records as the rows that W&B keeps: one a step, by rising steps, each step once."""

from dataclasses import dataclass, field, replace
from typing import Any

from train.watch.metrics import (
    GIB_BYTES,
    BaselineRecord,
    LeftOutRecord,
    Metrics,
    NoteRecord,
    Record,
    RunRecord,
    SampleRecord,
    SavedRecord,
    ScoreRecord,
    TrainRecord,
    ValidationRecord,
    WholeValidationRecord,
    perplexity,
)

AXES = {
    "train": "step",
    "norm": "step",
    "speed": "step",
    "validation": "validation/step",
    "score": "score/step",
}
"""What each group of charts is drawn over. Validation and scores bring their own step: what is
made again after a start comes with a later step's row."""


@dataclass(kw_only=True)
class Row:
    """What was recorded of a step.

    Attributes:
        step: its number, and that of the row.
        values: under the names that W&B groups its charts by.
        samples: prompts and texts.
        alerts: titles and texts.
    """

    step: int
    values: dict[str, Any] = field(default_factory=dict)
    samples: list[tuple[int, str, str]] = field(default_factory=list)
    alerts: list[tuple[str, str]] = field(default_factory=list)

    def take(self, other: "Row") -> None:
        """Add what another row has."""
        self.values |= other.values
        self.samples += other.samples
        self.alerts += other.alerts


class Rows:
    """Makes rows of records as they come.

    A run that goes on from a checkpoint, or goes back to one, makes steps again that have their
    rows: they are the same, and are passed over. What is new of an earlier step comes with the next
    row, for W&B takes no row but behind its last.

    Args:
        after: the last step that has its row; -1 without any.
        left_out: the last left-out step that was told of; -1 without any. Whoever begins anew reads
            of all of them.
    """

    def __init__(self, *, after: int = -1, left_out: int = -1) -> None:
        self._after = after
        self._left_out_before = left_out
        self._run: RunRecord | None = None
        self._row: Row | None = None
        self._late = Row(step=-1)
        self._left_out: set[int] = set()

    @property
    def reached(self) -> int:
        """The last step that has its row, or has one under way."""
        return self._after if self._row is None else self._row.step

    def add(self, record: Record) -> list[Row]:
        """Take note of a record; the row that is complete now, if one is."""
        if isinstance(record, RunRecord):
            self._run = record
        if isinstance(record, RunRecord | NoteRecord):
            return []
        reached = self.reached
        if record.step > reached:
            complete, self._after = self.rest(), reached
            self._row, self._late = replace(self._late, step=record.step), Row(step=-1)
            self._row.take(self._row_of(record))
            return complete
        if isinstance(record, LeftOutRecord):
            is_known = record.step in self._left_out or record.step <= self._left_out_before
        elif isinstance(record, TrainRecord | SampleRecord):
            is_known = record.step < reached or self._row is None
        else:
            is_known = record.step < reached
        if not is_known:
            (self._row or self._late).take(self._row_of(record))
        return []

    def rest(self) -> list[Row]:
        """The row under way, if one is."""
        return [] if self._row is None else [self._row]

    def flush(self) -> list[Row]:
        """The row under way, if one is; what comes of its step later joins the next."""
        rows, self._after, self._row = self.rest(), self.reached, None
        return rows

    def _row_of(self, record: Record) -> Row:
        row = Row(step=record.step, values=self._values(record))
        if isinstance(record, SampleRecord):
            row.samples.append((record.step, record.prompt, record.text))
        if isinstance(record, LeftOutRecord):
            self._left_out.add(record.step)
            row.alerts.append((f"step {record.step} is left out", record.reason))
        return row

    def _values(self, record: Record) -> dict[str, Any]:
        values: dict[str, float | None] = {}
        if isinstance(record, TrainRecord | ValidationRecord):
            values = {
                f"{record.kind}/loss": record.loss,
                f"{record.kind}/loss_first_of_span": record.first_of_span_loss,
                f"{record.kind}/loss_other": record.other_loss,
            }
            for source, loss in (record.by_source or {}).items():
                values[f"{record.kind}/loss/{source}"] = loss
        match record:
            case TrainRecord():
                values |= {
                    "train/learning_rate": record.learning_rate,
                    "train/gradient_norm": record.gradient_norm,
                    "speed/tokens_per_second": record.tokens_per_second,
                    **self._speeds(record.tokens_per_second),
                    "speed/step_seconds": record.step_seconds,
                    "speed/data_wait_fraction": record.data_wait_fraction,
                    "speed/memory_gib": record.memory_bytes / GIB_BYTES,
                }
                for part, norm in (record.gradient_norms or {}).items():
                    values[f"norm/{part}"] = norm
            case ValidationRecord():
                values["validation/step"] = record.step
                values["validation/perplexity"] = perplexity(record.loss)
            case WholeValidationRecord():
                values |= {
                    "validation/step": record.step,
                    "validation/loss_whole_split": record.loss,
                }
            case ScoreRecord():
                values |= {"score/step": record.step, f"score/{record.task}": record.score}
            case SavedRecord():
                values["speed/save_seconds"] = record.seconds
            case LeftOutRecord():
                values["train/left_out"] = record.step
            case BaselineRecord():
                values |= {
                    "validation/step": record.step,
                    "validation/unigram_entropy": record.unigram_entropy,
                }
            case _:
                pass
        return {name: value for name, value in values.items() if value is not None}

    def _speeds(self, tokens_per_second: float) -> dict[str, float | None]:
        """What a speed means for each rank of the run."""
        if self._run is None:
            return {}
        return {
            "speed/tokens_per_second_of_rank": tokens_per_second / max(1, self._run.num_ranks),
            "speed/mfu": self._run.mfu(tokens_per_second),
            "speed/bubble_fraction": self._run.bubble_fraction,
        }


def recorded(metrics: Metrics) -> list[Record]:
    """What rows are made of, of all that a run has recorded, by rising steps."""
    records: list[Record] = [
        *metrics.runs,
        *metrics.train,
        *([] if metrics.baseline is None else [metrics.baseline]),
        *metrics.validation,
        *([] if metrics.whole_validation is None else [metrics.whole_validation]),
        *metrics.scores,
        *metrics.samples,
        *metrics.left_out,
        *metrics.saved,
    ]
    return sorted(records, key=lambda record: record.step)
