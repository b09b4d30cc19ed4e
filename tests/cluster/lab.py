"""A Slurm cluster and jobs on it that can be disturbed, beside an undisturbed run without Slurm."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import psutil

from tests.corpora import write_corpus
from tests.lab_fixtures import ENDED, SlurmLab
from tests.train.runs import TINY_RUN, run
from tests.warm import REPOSITORY
from tools.keep.attempt import ATTEMPTS_NAME, Attempt, read_attempts
from tools.lab import s3, slurm
from tools.lab.daemons import Record
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

STEPS = 120
SAMPLES = 8 * STEPS
CALM = (
    *(f"steps={STEPS}", f"validation.every_steps={STEPS}", "zero.stage=1"),
    *("checkpoint.every_steps=10", "checkpoint.keep=12", "batch.micro_sequences=2"),
)
DEADLINE_SECONDS = 180.0
MAIN = """\
from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()

import os
import sys

from tests.cluster import injected
from train.real_main import main

if __name__ == "__main__":
    injected.into(os.environ)
    sys.exit(main())
"""
"""Of a trainer whose numbers can be made wrong, see `tests.cluster.injected`."""


class Job:
    """A job that trains.

    Attributes:
        number: of Slurm.
        directory: of its run.
    """

    def __init__(self, lab: "Lab", number: int, directory: Path) -> None:
        self._lab = lab
        self.number = number
        self.directory = directory

    @property
    def steps(self) -> list[int]:
        """Steps that have been recorded, some more than once."""
        metrics = RunDirectory(self.directory).metrics
        lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
        return [json.loads(line)["step"] for line in lines if b'"kind":"train"' in line]

    @property
    def starts(self) -> int:
        """How often the run has been started."""
        metrics = RunDirectory(self.directory).metrics
        return metrics.read_bytes().count(b'"kind":"run"') if metrics.exists() else 0

    @property
    def state(self) -> str:
        """As Slurm has it."""
        return self._lab.slurm.job(self.number)["JobState"]

    @property
    def attempts(self) -> list[Attempt]:
        """What keepers have written of it."""
        return read_attempts(self.directory / ATTEMPTS_NAME)

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that train, by rank."""
        found = {
            int(environment["SLURM_PROCID"]): process
            for process, environment in self._processes("train")
            if "SLURM_PROCID" in environment
        }
        assert found, "no rank runs"
        return found

    def keeper(self) -> psutil.Process:
        """The process that watches them."""
        [(process, _)] = self._processes("tools.keep")
        return process

    def _processes(self, module: str) -> list[tuple[psutil.Process, Mapping[str, str]]]:
        found: list[tuple[psutil.Process, Mapping[str, str]]] = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if words[1:3] == ["-m", module] and f"run_directory={self.directory}" in words:
                    found.append((process, process.environ()))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def wait_for_step(self, step: int) -> None:
        """Until it has been recorded."""
        self.wait(lambda: step in self.steps, f"step {step}")

    def wait(self, is_so: Callable[[], Any], what: str) -> None:
        """Until something is so; the job's output where it never is."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_so():
            assert time.monotonic() < deadline, f"waited for {what}:\n{self.output}"
            time.sleep(0.05)

    def end(self) -> str:
        """Wait until it has; its state then."""
        fields = self._lab.slurm.wait(self.number, timeout_seconds=DEADLINE_SECONDS, states=ENDED)
        return fields["JobState"]

    @property
    def output(self) -> str:
        """What it has printed."""
        [path] = self._lab.project.glob(f"slurm-*-{self.number}.out")
        return path.read_text()


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
        (self.project / "train").mkdir(parents=True)
        for name in ("model", "parallel", "tools", "slurm", "configs", "tests"):
            (self.project / name).symlink_to(REPOSITORY / name)
        for path in (REPOSITORY / "train").iterdir():
            name = "real_main.py" if path.name == "__main__.py" else path.name
            if name != "__pycache__":
                (self.project / "train" / name).symlink_to(path)
        (self.project / "train/__main__.py").write_text(MAIN)
        (self.project / ".venv").symlink_to(Path(sys.prefix))
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
        return Job(self, number, directory)


def losses_of(directory: Path) -> list[tuple[int, float]]:
    """Steps and losses, of each step the last."""
    return [(each.step, each.loss) for each in read_metrics(RunDirectory(directory).metrics).train]
