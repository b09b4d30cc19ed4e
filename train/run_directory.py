"""The directory of a run: the one place that names what lies in it, and its lock."""

import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from train.checkpoint.directory import CHECKPOINTS_NAME
from train.errors import RunDirectoryError
from train.storage.place import Place

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class RunDirectory:
    """What a run leaves, by name.

    Attributes:
        path: the directory.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """The resolved configuration; with it the directory is this run's."""
        return self.path / "config.yaml"

    @property
    def choice(self) -> Path:
        """What `tools.pretrain` chose, before the run begins."""
        return self.path / "pretrain.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, where the configuration names no other place."""
        return self.path / CHECKPOINTS_NAME

    @property
    def metrics(self) -> Path:
        """Every record of the run."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The model's own words, as text."""
        return self.path / "samples.txt"

    @property
    def ledger(self) -> Path:
        """What each rank has read, a file for each start and rank."""
        return self.path / "ledger"

    @property
    def tokenizer(self) -> Path:
        """A copy of the corpus's tokenizer."""
        return self.path / TOKENIZER

    @property
    def report(self) -> Path:
        """The report, for a browser."""
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """The numbers of a complete run, for programs."""
        return self.path / "summary.json"

    @property
    def adapter(self) -> Path:
        """A LoRA run's adapters in peft's file format."""
        return self.path / "adapter"

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def draft(self, file: Path) -> Path:
        """Where one of the files is written before it takes its name."""
        return file.with_name(f".{file.name}.tmp")

    @property
    def holds_other_files(self) -> bool:
        """Whether there is anything that neither a run nor what starts it has left."""
        ours = ("slurm-", f".{self.config.name}", self._lock.name)
        choice = (self.choice.name, f".{self.choice.name}")
        return self.path.is_dir() and any(
            not entry.name.startswith((*ours, *choice)) for entry in self.path.iterdir()
        )

    def hold(self) -> FileLock:
        """A lock on the directory, taken if it exists; before anything in it is looked at.

        Returns:
            A lock to keep until the run ends; a killed process lets go of it by itself.

        Raises:
            RunDirectoryError: another process holds it.
        """
        lock = FileLock(self._lock, timeout=0)
        # One that cannot be written is told when the run claims it.
        if self.path.is_dir() and os.access(self.path, os.W_OK):
            self.take(lock)
        return lock

    def take(self, lock: FileLock) -> None:
        """Takes the lock.

        Raises:
            RunDirectoryError: another process holds it.
        """
        try:
            lock.acquire()
        except Timeout:
            raise RunDirectoryError(
                f"{self} is in use by another process: wait for it, or choose another run_directory"
            ) from None


def kept_tokenizer(checkpoint: Place) -> Place | None:
    """The tokenizer kept in a checkpoint, as `tools.merge` does, or by its run; None without."""
    kept = (place / TOKENIZER for place in (checkpoint, checkpoint.parent.parent))
    return next((tokenizer for tokenizer in kept if tokenizer.exists()), None)
