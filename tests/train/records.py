"""Records for tests of what is written and shown about a run."""

from pathlib import Path
from typing import Any

from tests.train.runs import TINY_RUN
from train.config import RunConfig
from train.config_files import load
from train.watch.metrics import RunRecord, TrainRecord, ValidationRecord


def train_record(step: int, **changes: Any) -> TrainRecord:
    values: dict[str, Any] = {
        "step": step,
        "loss": 9.0 - 0.1 * step,
        "first_of_span_loss": 9.5 - 0.1 * step,
        "other_loss": 8.9 - 0.1 * step,
        "learning_rate": 2.9e-4,
        "gradient_norm": 1.0 + 1.0 / step,
        "tokens": 1000,
        "scored_tokens": 750,
        "step_seconds": 0.2,
        "data_wait_seconds": 0.001,
        "memory_bytes": 3 * 2**29,
    }
    return TrainRecord(**(values | changes))


def validation_record(
    step: int, loss: float = 4.5, *, by_source: dict[str, float] | None = None
) -> ValidationRecord:
    return ValidationRecord(
        step=step,
        by_source=by_source,
        loss=loss,
        first_of_span_loss=loss + 0.5,
        other_loss=loss - 0.1,
        scored_tokens=4000,
        seconds=1.5,
    )


def run_record(step: int = 0, total_steps: int = 20) -> RunRecord:
    return RunRecord(
        step=step,
        total_steps=total_steps,
        name="tiny & small",
        num_ranks=2,
        num_threads=1,
        precision="fp32",
        num_parameters=7_412_345,
        machine="a machine",
        started=1.7e9,
    )


def run_config(directory: Path, *overrides: str) -> RunConfig:
    """The tiny run in a directory; without W&B, in plain lines, unless overrides say so."""
    return load(RunConfig, [str(TINY_RUN), f"run_directory={directory}", *overrides])
