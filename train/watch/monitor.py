"""Watching a run: every record goes to `metrics.jsonl`, to the screen and to W&B."""

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console

from train.run_directory import RunDirectory
from train.watch.config import WatchConfig
from train.watch.metrics import (
    GIB_BYTES,
    BaselineRecord,
    MetricsFile,
    NoteRecord,
    Record,
    RunRecord,
    SampleRecord,
    TrainRecord,
    ValidationRecord,
    perplexity,
)
from train.watch.progress import BarProgress, LineProgress, ProgressDisplay
from train.watch.wandb_writer import WandbWriter, new_run_id


class Monitor:
    """Takes what happens in a run and writes it wherever it is watched.

    Opened as a context manager. Rank 0 writes; on every other rank each method does nothing, so
    that the loop calls it everywhere. Nothing here waits for other ranks.

    Args:
        directory: of the run; it exists.
        run_name: name shown in W&B and in the report.
        config: resolved configuration, as plain values.
        watch: how to watch.
        first_step: steps done before; not 0 for a resumed run.
        total_steps: step at which the run ends.
        rank: of this process.
        num_ranks: processes of the run.
        precision: such as "fp32" or "bf16".
        num_parameters: of the model, trained or not.
        wandb_run_id: the id stored in the checkpoint that the run resumes from; None makes one.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        run_name: str,
        config: Mapping[str, Any],
        watch: WatchConfig,
        first_step: int,
        total_steps: int,
        rank: int,
        num_ranks: int,
        precision: str,
        num_parameters: int,
        wandb_run_id: str | None = None,
    ) -> None:
        self._directory = directory
        self._config = config
        self._watch = watch
        self._is_writer = rank == 0
        self._step = first_step
        self._run = RunRecord(
            step=first_step,
            total_steps=total_steps,
            name=run_name,
            num_ranks=num_ranks,
            num_threads=torch.get_num_threads(),
            precision=precision,
            num_parameters=num_parameters,
            machine=describe_machine(),
            started=time.time(),
        )
        self._wandb_run_id = wandb_run_id or new_run_id()
        self._file: MetricsFile | None = None
        self._display: ProgressDisplay | None = None
        self._wandb: WandbWriter | None = None

    @property
    def wandb_run_id(self) -> str:
        """The id to store in checkpoints; only rank 0's is that of the run."""
        return self._wandb_run_id

    def __enter__(self) -> Self:
        if not self._is_writer:
            return self
        self._file = MetricsFile(self._directory.metrics)
        self._file.write(self._run)
        self._display = _open_display(self._watch, self._run)
        if self._watch.wandb != "disabled":
            self._wandb = WandbWriter(
                self._directory.path,
                mode=self._watch.wandb,
                project=self._watch.wandb_project,
                entity=self._watch.wandb_entity,
                run_name=self._run.name,
                run_id=self._wandb_run_id,
                config=self._config,
            )
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._display is not None:
            self._display.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)
            self._show_wandb_notes(self._wandb)
        if self._file is not None:
            self._file.close()

    def train(self, record: TrainRecord) -> None:
        """Takes an optimiser step."""
        self._write(record, _wandb_values(record))

    def validation(self, record: ValidationRecord) -> None:
        """Takes a validation pass."""
        self._write(record, _wandb_values(record))

    def baseline(self, unigram_entropy: float) -> None:
        """Takes the unigram cross-entropy on the validation tokens, in nats."""
        record = BaselineRecord(step=self._step, unigram_entropy=unigram_entropy)
        self._write(record, {"validation/unigram_entropy": unigram_entropy})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Takes a text that the model generated after `prompt`; also kept in `samples.txt`."""
        self._write(SampleRecord(step=step, prompt=prompt, text=text))
        if self._wandb is not None:
            self._wandb.sample(step, prompt, text)
        if self._is_writer:
            with self._directory.samples.open("a", encoding="utf-8") as file:
                file.write(f"── step {step} ──\n{prompt}▸{text}\n\n")

    def note(self, text: str) -> None:
        """Shows and keeps a line for whoever watches the run."""
        self._write(NoteRecord(step=self._step, text=text))
        if self._display is not None:
            self._display.note(text)

    def _write(self, record: Record, wandb_values: Mapping[str, float] | None = None) -> None:
        self._step = max(self._step, record.step)
        if self._file is not None:
            self._file.write(record)
        if self._display is not None:
            self._display.write(record)
        if self._wandb is not None:
            if wandb_values:
                self._wandb.log(record.step, wandb_values)
            self._show_wandb_notes(self._wandb)

    def _show_wandb_notes(self, writer: WandbWriter) -> None:
        for text in writer.take_notes():
            self.note(text)


def describe_machine() -> str:
    """Processor or accelerator of this host, and the torch version, in words."""
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    else:
        device = f"{os.cpu_count()} × {_processor_name()}"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _open_display(watch: WatchConfig, run: RunRecord) -> ProgressDisplay:
    console = Console()
    wants_bar = console.is_interactive if watch.progress is None else watch.progress
    if wants_bar:
        return BarProgress(console, total_steps=run.total_steps, first_step=run.step)
    return LineProgress(
        console,
        total_steps=run.total_steps,
        first_step=run.step,
        log_every_steps=watch.log_every_steps,
    )


def _wandb_values(record: TrainRecord | ValidationRecord) -> dict[str, float]:
    """The record under the names that W&B groups its charts by."""
    values: dict[str, float | None] = {
        f"{record.kind}/loss": record.loss,
        f"{record.kind}/loss_first_of_span": record.first_of_span_loss,
        f"{record.kind}/loss_other": record.other_loss,
    }
    if isinstance(record, TrainRecord):
        seconds = max(record.step_seconds, 1e-9)
        values |= {
            "train/learning_rate": record.learning_rate,
            "train/gradient_norm": record.gradient_norm,
            "speed/tokens_per_second": record.tokens / seconds,
            "speed/data_wait_fraction": record.data_wait_seconds / seconds,
            "speed/memory_gib": record.memory_bytes / GIB_BYTES,
        }
    else:
        values["validation/perplexity"] = perplexity(record.loss)
        for source, loss in (record.by_source or {}).items():
            values[f"validation/loss/{source}"] = loss
    return {name: value for name, value in values.items() if value is not None}
