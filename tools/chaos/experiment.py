"""The run that is disturbed, and the same one without faults."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from tools.chaos import injected
from tools.chaos.job import Job
from tools.chaos.project import REPOSITORY, make_project
from tools.corpus.build import build
from tools.corpus.request import Request
from tools.lab.daemons import LabError, Record
from tools.lab.jobs import SlurmLab
from train.checkpoint.directory import latest
from train.checkpoint.format import STATE_NAME, Index, State
from train.checkpoint.restore import read_state
from train.claim import stored_config
from train.run_directory import RunDirectory

BUCKET: Final = "chaos"
EXPERIMENT: Final = "configs/experiment/tiny.yaml"
CLUSTER: Final = "configs/cluster/lab.yaml"
NUM_NODES: Final = 3
"""Of the lab: a rank on each of two, and one is spare."""
NUM_RANKS: Final = 2
LEAST_SECONDS: Final = 5.0
"""A section of a rank may always take so long; its limit is five times its longest otherwise."""
_VOCABULARY: Final = 512
_STEPS: Final = 1_000_000
"""More than it comes to."""
_UNDISTURBED_SECONDS: Final = 1800.0


def build_corpus(directory: Path) -> None:
    """Make what it reads: this project's own text."""
    request = Request(
        sources=[str(REPOSITORY / "docs/decisions")], vocabulary=_VOCABULARY, validation=0.1
    )
    build(str(directory), request, console=Console(quiet=True))


def words(corpus: Path, run: Path, *, steps: int) -> list[str]:
    """What `python -m train` is given, two ranks that each have all of the model.

    Args:
        corpus: as `build_corpus` makes it.
        run: directory of the run.
        steps: at which it ends; how many they are changes none of their numbers.
    """
    return [
        *(EXPERIMENT, CLUSTER, f"data.corpus={corpus}", f"run_directory={run}"),
        *(f"model.decoder.vocabulary={_VOCABULARY}", "layout.tensor=1", "zero.stage=1"),
        *(f"steps={steps}", "optim.schedule=constant", f"optim.schedule_steps={_STEPS}"),
        *(f"validation.every_steps={_STEPS}", "watch.wandb=disabled"),
    ]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A tiny model in fp32, on the lab.

    Attributes:
        directory: of all of it.
        pace_seconds: that each step takes longer, as where a device computes.
        is_warm: whether ranks stand by with their imports done.
    """

    directory: Path
    pace_seconds: float
    is_warm: bool

    @property
    def run(self) -> Path:
        """The disturbed run's directory."""
        return self.directory / "run"

    @property
    def striking(self) -> Path:
        """See `tools.chaos.injected.STRIKING`."""
        return self.directory / "striking"

    @property
    def corpus(self) -> Path:
        """What both read."""
        return self.directory / "corpus"

    def prepare(self) -> None:
        """Make the checkout and the corpus."""
        make_project(self.directory / "project")
        self.striking.mkdir()
        build_corpus(self.corpus)

    def submit(self, slurm: SlurmLab, store: Record) -> Job:
        """Submit the run that is disturbed."""
        own = f"{self.directory}/disks/$SLURMD_NODENAME"
        environment = {
            **store.environment,
            injected.SLOW: str(self.pace_seconds),
            injected.STRIKING: str(self.striking),
            "KEEP_OPTIONS": f"--least-seconds={LEAST_SECONDS}",
        }
        project = self.directory / "project"
        number = slurm.submit(
            *(f"--nodes={NUM_NODES}", "--ntasks-per-node=1"),
            *("slurm/pretrain.sh", *words(self.corpus, self.run, steps=_STEPS)),
            *(f"run_mirror=s3://{BUCKET}/run", "checkpoint.every_steps=100"),
            f"checkpoint.local={{directory: {own}, every_steps: 20}}",
            *("cluster.ranks_per_node=1", f"cluster.spare_nodes={NUM_NODES - NUM_RANKS}"),
            f"keep.warm={str(self.is_warm).lower()}",
            directory=project,
            environment=environment,
        )
        return Job(slurm, number, project=project, directory=self.run)

    def undisturbed(self, *, steps: int) -> Path:
        """Make the run that nothing disturbs, without Slurm; its directory.

        Raises:
            LabError: it fails.
        """
        run = self.directory / "undisturbed"
        given = [*words(self.corpus, run, steps=steps), f"checkpoint.every_steps={_STEPS}"]
        command = [sys.executable, "-m", "tools.keep", "--ranks", str(NUM_RANKS), "--threads", "1"]
        done = subprocess.run(
            [*command, "train", *given],
            cwd=REPOSITORY,
            env={name: value for name, value in os.environ.items() if name != "SLURM_CONF"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_UNDISTURBED_SECONDS,
        )
        if done.returncode != 0:
            raise LabError(f"the undisturbed run failed:\n{done.stderr[-4000:]}")
        return run


def last_checkpoint(run: Path) -> tuple[int, list[tuple[str, str | None]]]:
    """The step of a run's last checkpoint, and the checksums of its weights and moments.

    Raises:
        LabError: it has none.
    """
    directory = RunDirectory(run)
    found = latest(stored_config(directory).checkpoints_of(directory))
    if found is None:
        raise LabError(f"{run} has no checkpoint")
    index = Index.read(found)
    sums = sorted((name, file.xxh3_128) for name, file in index.files.items())
    return read_state(found, State).step, [each for each in sums if each[0] != STATE_NAME]


def first_difference(ours: Sequence[object], theirs: Sequence[object]) -> str | None:
    """Where two lists part, in words; None if they are equal."""
    if len(ours) != len(theirs):
        return f"{len(ours)} are not {len(theirs)}"
    return next((f"{a} is not {b}" for a, b in zip(ours, theirs, strict=True) if a != b), None)
