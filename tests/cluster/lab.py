"""A Slurm cluster and jobs on it that can be disturbed, beside an undisturbed run without Slurm."""

import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

from tests.cluster.allocated import Allocated
from tests.corpora import write_corpus
from tests.train.fault_lab import losses_of
from tests.train.runs import TINY_RUN, run
from tools.chaos.job import Job
from tools.chaos.project import make_project
from tools.lab import s3, slurm
from tools.lab.daemons import Record
from tools.lab.jobs import SlurmLab

STEPS = 120
SAMPLES = 8 * STEPS
CALM = (
    *(f"steps={STEPS}", f"validation.every_steps={STEPS}", "zero.stage=1"),
    *("checkpoint.every_steps=10", "checkpoint.keep=12", "batch.micro_sequences=2"),
)


class Lab:
    """The cluster, a corpus, a copy of the code, and what an undisturbed run does.

    Args:
        directory: of all of it.
        num_nodes: of the cluster.
    """

    def __init__(self, directory: Path, *, num_nodes: int = 3) -> None:
        self.directory = directory
        self._num_nodes = num_nodes
        self.project = directory / "project"
        self._stores = 0

    def __enter__(self) -> Self:
        record = slurm.up(self.directory / "slurm", num_nodes=self._num_nodes, num_cpus=2)
        self.record = record
        self.slurm = SlurmLab(self.directory / "slurm", record.environment)
        make_project(self.project)
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(1, self._stores + 1):
            s3.down(self.directory / f"s3-{number}")
        slurm.down(self.directory / "slurm")

    @cached_property
    def corpus(self) -> Path:
        """That all read; one epoch is the run."""
        return write_corpus(self.directory / "corpus", train=SAMPLES, validation=8)

    def store(self) -> Record:
        """A store of one's own."""
        self._stores += 1
        return s3.up(self.directory / f"s3-{self._stores}", bucket="faults")

    def told(self, *overrides: str) -> list[tuple[int, float]]:
        """Losses of a run that nothing disturbs, told beforehand what to leave out."""
        directory = self.directory / f"told-{zlib.crc32(repr(overrides).encode()):x}"
        if not directory.exists():
            run(self.corpus, directory, *CALM, *overrides, ranks=2)
        return losses_of(directory)

    def submit(
        self,
        name: str,
        *overrides: str,
        flags: tuple[str, ...] = (),
        environment: Mapping[str, str] = {},
    ) -> Job:
        """Submit a run of that name, as a user does; once more where it has been submitted."""
        directory = self.directory / "runs" / name
        number = self.slurm.submit(
            *("--ntasks-per-node=1", "--nodes=2", *flags),
            *("slurm/pretrain.sh", *self._arguments(directory, *overrides)),
            directory=self.project,
            environment=environment,
        )
        return Job(self.slurm, number, project=self.project, directory=directory)

    def clear(self) -> None:
        """Start dead nodes again and end all jobs: the next case needs the nodes."""
        for node in slurm.dead_nodes(self.record):
            slurm.revive_node(self.record, node)
        slurm.end_jobs(self.record)

    def is_idle(self, node: str) -> bool:
        """Whether a node waits for jobs.

        `sinfo` may call it mixed for ever where it died under a job that went on without it.
        """
        shown = self.slurm.call("scontrol", "--oneliner", "show", "node", node)
        return "State=IDLE" in shown.split()

    def allocated(self, name: str) -> Allocated:
        """Start a run of that name in a terminal, as one does who has an allocation."""
        directory = self.directory / "runs" / name
        arguments = self._arguments(directory)
        return Allocated(self.slurm, arguments, project=self.project, directory=directory)

    def _arguments(self, directory: Path, *overrides: str) -> list[str]:
        places = (f"data.corpus={self.corpus}", f"run_directory={directory}")
        return [str(TINY_RUN), *places, *CALM, *overrides]
