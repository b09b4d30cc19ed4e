"""A Slurm cluster and jobs on it that can be disturbed, beside an undisturbed run without Slurm."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, run
from tools.chaos.job import Job
from tools.chaos.project import make_project
from tools.lab import s3, slurm
from tools.lab.daemons import Record
from tools.lab.jobs import SlurmLab
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

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
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.project = directory / "project"
        self._stores = 0

    def __enter__(self) -> Self:
        record = slurm.up(self.directory / "slurm", num_nodes=3, num_cpus=2)
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
        name = "told-" + "-".join(overrides).translate(str.maketrans("=[], ", "_____"))
        directory = self.directory / name
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
        exported = ",".join(["ALL", *(f"{key}={value}" for key, value in environment.items())])
        number = self.slurm.submit(
            *("--ntasks-per-node=1", "--nodes=2", f"--export={exported}", *flags),
            *("slurm/pretrain.sh", str(TINY_RUN), f"data.corpus={self.corpus}"),
            *(f"run_directory={directory}", *CALM, *overrides),
            directory=self.project,
        )
        return Job(self.slurm, number, project=self.project, directory=directory)


def losses_of(directory: Path) -> list[tuple[int, float]]:
    """Steps and losses, of each step the last."""
    return [(each.step, each.loss) for each in read_metrics(RunDirectory(directory).metrics).train]
