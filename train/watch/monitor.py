"""Watching a run: every record goes to `metrics.jsonl`, to the screen and to W&B."""

import os
import platform
import time
from contextlib import ExitStack, closing
from typing import Any, Self

import torch

from parallel.launch import World, processor_name
from train.config import RunConfig
from train.watch.metrics import MetricsFile, NoteRecord, Record, RunRecord, SampleRecord
from train.watch.progress import Display
from train.watch.wandb_writer import WandbWriter, new_run_id


class Monitor:
    """Takes what happens in a run and writes it wherever it is watched.

    Opened as a context manager. Rank 0 writes; on every other rank each method does nothing, so
    that the loop calls it everywhere. Nothing here waits for other ranks.

    Args:
        config: of the run, whose directory exists.
        world: this process among all.
        first_step: steps done before; not 0 for a resumed run.
        num_parameters: of the model, trained or not.
        wandb_run_id: the id stored in the checkpoint that the run resumes from; None makes one.

    Attributes:
        wandb_run_id: the id to store in checkpoints; only rank 0's is that of the run.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        *,
        first_step: int,
        num_parameters: int,
        wandb_run_id: str | None = None,
    ) -> None:
        self._config = config
        self._is_writer = world.is_main
        self._run = RunRecord(
            step=first_step,
            total_steps=config.steps,
            name=config.name,
            num_ranks=world.size,
            num_threads=torch.get_num_threads(),
            precision=config.precision,
            num_parameters=num_parameters,
            machine=describe_machine(),
            started=time.time(),
        )
        self._step = first_step
        self.wandb_run_id = wandb_run_id or new_run_id()
        self._watchers: list[MetricsFile | Display] = []
        self._opened = ExitStack()
        self._wandb: WandbWriter | None = None

    def __enter__(self) -> Self:
        if self._is_writer:
            with ExitStack() as opened:
                metrics = opened.enter_context(closing(MetricsFile(self._config.directory.metrics)))
                display = opened.enter_context(closing(Display(self._run, self._config.watch)))
                self._watchers = [metrics, display]
                if self._config.watch.wandb != "disabled":
                    self._wandb = WandbWriter(self._config, run_id=self.wandb_run_id)
                self.write(self._run)
                # The display closes first: a full disk must not leave the terminal as it is.
                self._opened = opened.pop_all()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: Any) -> None:
        with self._opened:
            if self._wandb is not None:
                self._wandb.finish(exit_code=0 if error_type is None else 1)
                self._tell_wandb_notes()

    def write(self, record: Record) -> None:
        """Takes a record; a sample is also kept in `samples.txt`."""
        self._step = max(self._step, record.step)
        for watcher in self._watchers:
            watcher.write(record)
        if self._is_writer and isinstance(record, SampleRecord):
            with self._config.directory.samples.open("a", encoding="utf-8") as file:
                file.write(f"── step {record.step} ──\n{record.prompt}▸{record.text}\n\n")
        if self._wandb is not None:
            self._wandb.write(record)
            self._tell_wandb_notes()

    def note(self, text: str) -> None:
        """Shows and keeps a line for whoever watches the run."""
        self.write(NoteRecord(step=self._step, text=text))

    def _tell_wandb_notes(self) -> None:
        for text in self._wandb.take_notes() if self._wandb is not None else ():
            self.note(text)


def describe_machine() -> str:
    """Processor or accelerator of this host, and the torch version, in words."""
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    else:
        device = f"{os.cpu_count()} × {processor_name()}"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
