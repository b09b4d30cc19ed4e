"""A corpus, servers of it, and runs that can be disturbed."""

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np

from tests.corpora import VOCABULARY, write_corpus
from tests.train.runs import Run, start
from tools.lab import s3
from tools.lab.daemons import Record
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

RANKS = 2
STEPS = 40
SAMPLES = 8 * STEPS
"""One epoch is the run."""
DOCUMENTS = 484
"""What so many sequences are packed from."""
OVERRIDES = (
    f"steps={STEPS}",
    "zero.stage=1",
    # Shards are needed all along the run, and few are read ahead.
    "data.shuffle_window=16",
    "storage.read_ahead_files=1",
    "storage.timeout_seconds=5",
    "storage.retry_budget_seconds=100",
    "checkpoint.every_steps=10",
    f"validation.every_steps={STEPS}",
)


@dataclass(kw_only=True)
class Played:
    """A run that has ended.

    Attributes:
        codes: exit status of each rank.
        outputs: what each rank printed.
        directory: of the run.
        seconds: from the fault to the end.
        corpus: that it read, on the disk; None is the lab's.
        environment: by which the run's checkpoints are reached afterwards.
    wrong: what else is not as it should be.
    """

    codes: list[int | None]
    outputs: list[str]
    directory: Path
    seconds: float
    corpus: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Lab:
    """A corpus on the disk and in a real S3 server, and what an undisturbed run does with it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.corpus = write_corpus(
            directory / "corpus", train=SAMPLES, validation=8, shard_bytes=1024
        )
        # Or the first rank would count, and so fetch, all of it before the first step.
        counts = np.ones(VOCABULARY, dtype=np.int64)
        np.save(self.corpus / "train/token_counts.npy", counts, allow_pickle=False)
        self._exit = ExitStack()
        self._lock = Lock()
        self._servers = 0
        self._losses: dict[Path, list[tuple[int, float]]] = {}

    def __enter__(self) -> Self:
        """Servers start when they are needed."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop them."""
        self._exit.close()

    def server(self) -> Record:
        """A server of one's own, which ends with the lab at the latest."""
        with self._lock:
            self._servers += 1
            directory = self.directory / f"s3-{self._servers}"
        record = s3.up(directory, bucket="faults")
        self._exit.callback(s3.down, directory)
        return record

    @cached_property
    def shared(self) -> Record:
        """The server of all cases that leave it alone."""
        return self.server()

    def losses(self, corpus: Path | None = None) -> list[tuple[int, float]]:
        """Steps and losses of an undisturbed run, from the directory."""
        corpus = corpus or self.corpus
        if corpus not in self._losses:
            played = self.run(corpus, self.directory / f"{corpus.name}-undisturbed")
            assert played.codes == [0] * RANKS, played.outputs
            self._losses[corpus] = losses_of(played.directory)
            assert len(self._losses[corpus]) == STEPS
        return self._losses[corpus]

    def upload(self, record: Record, name: str, *, corpus: Path | None = None) -> str:
        """Put the corpus into a server; its URL."""
        corpus = corpus or self.corpus
        client = s3.client(record.environment)
        for path in corpus.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "faults", f"{name}/{path.relative_to(corpus)}")
        return f"s3://faults/{name}"

    def copy(self, name: str) -> Path:
        """A copy of the corpus to spoil."""
        return Path(shutil.copytree(self.corpus, self.directory / name))

    def run(
        self,
        corpus: Path | str,
        directory: Path,
        *overrides: str,
        record: Record | None = None,
        environment: dict[str, str] | None = None,
    ) -> Played:
        """A whole run."""
        started = time.monotonic()
        return finish(
            self.start(corpus, directory, *overrides, record=record, environment=environment),
            directory,
            since=started,
        )

    def start(
        self,
        corpus: Path | str,
        directory: Path,
        *overrides: str,
        record: Record | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        """A run that has begun, with a cache of its own."""
        return start(
            corpus,
            directory,
            *OVERRIDES,
            f"storage.cache={directory.with_name(directory.name + '-cache')}",
            *overrides,
            ranks=RANKS,
            environment={**({} if record is None else record.environment), **(environment or {})},
        )


def finish(run: Run, directory: Path, *, since: float) -> Played:
    """Wait for a run; one that hangs is an error that shows all stacks."""
    run.wait()
    seconds = time.monotonic() - since
    return Played(
        codes=[rank.poll() for rank in run.ranks],
        outputs=[rank.output() for rank in run.ranks],
        directory=directory,
        seconds=seconds,
    )


def losses_of(directory: Path) -> list[tuple[int, float]]:
    """Steps and losses that a run recorded, the last time it made each."""
    path = RunDirectory(directory).metrics
    return read_metrics(path).losses if path.exists() else []


def wait_for_step(run: Run, directory: Path, step: int) -> None:
    """Until the run has recorded a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert all(rank.poll() is None for rank in run.ranks), run.wait().output[-3000:]
        if any(done >= step for done, _ in losses_of(directory)):
            return
        time.sleep(0.01)
    raise AssertionError(f"the run never reached step {step}: {run.wait().output[-3000:]}")
