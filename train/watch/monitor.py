"""Watching a run: every record goes to `metrics.jsonl`, to the screen and to W&B.

Nothing that only watches a run may end it. Whatever goes wrong in here is said once, wherever it
still can be, and the run goes on.
"""

import json
import os
import platform
import time
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final, Self

import torch

from model.semicausal import parameter_counts
from parallel.launch import World, processor_name
from train.checkpoint.background import TakenOverError
from train.config import RunConfig
from train.config_files import dump
from train.errors import InUseError, RunDirectoryError, UserError
from train.storage.place import Place
from train.watch.hardware import Hardware
from train.watch.metrics import (
    MetricsFile,
    NoteRecord,
    Record,
    RunRecord,
    SampleRecord,
    read_metrics,
)
from train.watch.progress import Display
from train.watch.streams import Streams
from train.watch.utilisation import flops_per_token, peak_flops
from train.watch.wandb_run.switches import mode_of, run_id_of
from train.watch.wandb_run.writer import WandbWriter

_TAKEN_OVER: Final = (InUseError, TakenOverError)


class Monitor:
    """Takes what happens in a run and writes it wherever it is watched.

    Opened as a context manager. Rank 0 writes; on every other rank each method does nothing, so
    that the loop calls it everywhere. Nothing here waits for other ranks. The first rank of each
    node looks at its hardware.

    Args:
        config: of the run, whose directory exists.
        world: this process among all.
        first_step: steps done before; not 0 for a resumed run.
        num_parameters: of the model, trained or not.
        wandb_run_id: the id stored in the checkpoint that the run resumes from; None takes that of
            an earlier start of this very run, or makes one.
        streams: what the display writes to, and what may be said of it.

    Raises:
        RunDirectoryError: `metrics.jsonl` cannot be opened.

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
        streams: Streams | None = None,
    ) -> None:
        self._config = config
        self._is_writer = world.is_main
        if wandb_run_id is None and self._is_writer:
            wandb_run_id = _wandb_run_id_before(config)
        self.wandb_run_id = run_id_of(wandb_run_id)
        self._run = RunRecord(
            step=first_step,
            wandb_run_id=self.wandb_run_id,
            wandb_mode=mode_of(config.watch)[0],
            **(_facts(config, num_ranks=world.size) if self._is_writer else {}),
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
        self._streams = streams
        self._failed: set[str] = set()
        self._metrics: MetricsFile | None = None
        self._display: Display | None = None
        self._wandb: WandbWriter | None = None
        self._hardware: Hardware | None = None
        if self._is_writer:
            path = config.directory.metrics
            try:
                self._metrics = MetricsFile(path)
            except OSError as error:
                raise RunDirectoryError(
                    f"{path} cannot be written ({error.strerror}): make room, or move what is in "
                    "its place away"
                ) from None

    def __enter__(self) -> Self:
        if int(os.environ.get("LOCAL_RANK", "0" if self._is_writer else "1")) == 0:
            with self.guard("the hardware"):
                self._hardware = Hardware(self._config.directory.hardware)
        if self._is_writer:
            watch = self._config.watch
            with self.guard("the display"):
                self._display = Display(self._run, watch)
            mode, said = mode_of(watch)
            if mode != "disabled":
                with self.guard("W&B"):
                    self._wandb = WandbWriter(
                        self._config,
                        run_id=self.wandb_run_id,
                        mode=mode,
                        first_step=self._run.step,
                    )
            self.write(self._run)
            if said is not None:
                self.note(said)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: Any) -> None:
        if self._hardware is not None:
            self._hardware.stop()
        if self._wandb is not None:
            with self.guard("W&B"):
                if error_type is not None and issubclass(error_type, _TAKEN_OVER):
                    self._wandb.leave()
                else:
                    self._wandb.finish(exit_code=0 if error_type is None else 1)
            self._tell_notes()
        if self._display is not None:
            with self.guard("the display"):
                self._display.close()
        if self._metrics is not None:
            with self.guard(str(self._config.directory.metrics)):
                self._metrics.close()

    def write(self, record: Record) -> None:
        """Takes a record; a sample is also kept in `samples.txt`."""
        self._step = max(self._step, record.step)
        if not self._is_writer:
            return
        directory = self._config.directory
        if self._metrics is not None:
            with self.guard(str(directory.metrics)):
                if self._metrics.write(record):
                    self._say_again()
        if self._display is not None:
            with self.guard("the display"):
                self._display.write(record)
        if isinstance(record, SampleRecord):
            with self.guard(str(directory.samples)), directory.samples.open("a") as file:
                file.write(f"── step {record.step} ──\n{record.prompt}▸{record.text}\n\n")
        if self._wandb is not None:
            self._wandb.write(record)
        self._tell_notes()

    @contextmanager
    def guard(self, what: str) -> Generator[None]:
        """What only watches is done in here: its errors are said, once until it goes well."""
        try:
            yield
            self._failed.discard(what)
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                self.note(f"{what}: not written ({reason}), and the run goes on")

    def note(self, text: str) -> None:
        """Shows and keeps a line for whoever watches the run."""
        self.write(NoteRecord(step=self._step, text=text))

    def _tell_notes(self) -> None:
        for source in (self._wandb, self._streams):
            for text in () if source is None else source.take_notes():
                self.note(text)

    def _say_again(self) -> None:
        """Make a directory that was removed this run's again; what it held otherwise is lost."""
        directory = self._config.directory
        if not directory.config.exists():
            Place.of(directory.config).write(dump(self._config).encode())
        self.note(f"{directory.metrics} was removed: it is written again, and the run goes on")


def _identity_of(config: RunConfig) -> str:
    """A hash of what decides a run's numbers."""
    return sha256(json.dumps(config.identity(), sort_keys=True).encode()).hexdigest()


def _facts(config: RunConfig, *, num_ranks: int) -> dict[str, Any]:
    """What tells runs apart, what the schedule leaves idle, and what MFU is counted by."""
    stages, chunks = config.layout.pipeline, config.layout.chunks
    micro, copies = config.batch.micro_sequences, num_ranks // config.layout.model_ranks
    facts: dict[str, Any] = {"identity": _identity_of(config)}
    if stages > 1 and micro != "auto":
        microbatches = config.batch.sequences // (copies * micro)
        facts["bubble_fraction"] = (stages - 1) / (microbatches * chunks + stages - 1)
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if peak is not None and config.objective is None:
        decoder = config.model.decoder
        facts["peak_flops"] = peak
        facts["flops_per_token"] = flops_per_token(
            parameters=parameter_counts(config.built_model)["decoder"],
            num_layers=decoder.num_layers,
            width=decoder.width,
            slots=config.data.sequence_tokens,
        )
    return facts


def _wandb_run_id_before(config: RunConfig) -> str | None:
    """The W&B id of this very run's last start, which has saved no checkpoint to keep it."""
    path = config.directory.metrics
    try:
        last = read_metrics(path).runs[-1] if path.exists() else None
    except (UserError, IndexError):
        return None
    return last.wandb_run_id if last and last.identity == _identity_of(config) else None


def describe_machine() -> str:
    """Processor or accelerator of this host, and the torch version, in words."""
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    else:
        device = f"{os.cpu_count()} × {processor_name()}"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
