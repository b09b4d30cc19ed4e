"""Runs over two clusters that share a store and W&B, and nothing else.

`python -m tests.cluster.two_clusters` (or `make two-clusters`) writes out/two-clusters.json.
Cluster A (two nodes, pp2·dp2) trains and is cancelled in the middle; all that it had is removed,
and cluster B (one node, tp2) goes on. In another run A is frozen, B takes it over, and A wakes up.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from model import torchvision_free

torchvision_free.install()

import psutil  # noqa: E402  # after install()
import yaml  # noqa: E402

from tests.cluster.lab import Lab  # noqa: E402
from tests.corpora import write_corpus  # noqa: E402
from tests.train.fault_lab import losses_of  # noqa: E402
from tests.train.runs import TINY_RUN  # noqa: E402
from tests.train.watch.wandb_run.server import wandb_server  # noqa: E402
from tools.arguments import Parser, output_file  # noqa: E402
from tools.chaos.injected import SLOW  # noqa: E402
from tools.chaos.job import Job  # noqa: E402
from tools.command import command_line, write_json  # noqa: E402
from tools.lab import s3  # noqa: E402
from tools.ledger import check_run  # noqa: E402
from tools.ranks import changed_environment  # noqa: E402
from train.checkpoint.directory import complete, step_of  # noqa: E402
from train.checkpoint.restore import read_state  # noqa: E402
from train.prepare import RunState  # noqa: E402
from train.run_directory import RunDirectory  # noqa: E402
from train.storage.place import Place  # noqa: E402
from train.watch.metrics import read_metrics  # noqa: E402

STEPS: Final = 100
STOPPED_AT: Final = 35
SAVED_EVERY: Final = 10
LARGEST_DIFFERENCE: Final = 1e-5
"""Of a loss, relative, in another layout."""
BUCKET: Final = "two"
LINE: Final = (
    *("tiny_run.yaml", "cluster.yaml", f"data.corpus=s3://{BUCKET}/corpus"),
    *(f"steps={STEPS}", f"validation.every_steps={STEPS}", f"checkpoint.every_steps={SAVED_EVERY}"),
    *("checkpoint.keep=20", "watch.wandb=online", "optim.lr=1e-3"),
)
IN_A_CONTAINER: Final = "cluster.container=[unshare, --pid, --fork, --kill-child, --mount-proc]"
"""As on another host, a process sees nothing of the other cluster's."""
SLOWLY: Final = {SLOW: "1.0"}
"""A step of a cluster takes as many seconds longer while another one looks at it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run that two clusters made.

    Attributes:
        states: in which Slurm has its jobs.
        said: what kept a cluster from writing, or from going on.
        first_step: the first that B made.
        loss_difference_first_step: of that step from a run that nothing disturbed.
        largest_loss_difference: of any step, likewise; both relative.
        wandb_runs: that there are of it.
        missing_steps: in B's metrics, or at W&B.
        repeated_steps: likewise.
        faults: of ledger and checkpoints.
    """

    states: dict[str, str]
    said: dict[str, str]
    first_step: int
    loss_difference_first_step: float
    largest_loss_difference: float
    wandb_runs: int
    missing_steps: int
    repeated_steps: int
    faults: list[str]

    @property
    def is_well(self) -> bool:
        """Whether it is all as on one cluster."""
        counts = self.wandb_runs, self.missing_steps, self.repeated_steps, len(self.faults)
        return counts == (1, 0, 0, 0) and self.largest_loss_difference < LARGEST_DIFFERENCE


class Clusters:
    """Two clusters with a checkout and a disk each, a store and a W&B server.

    Args:
        directory: of all of it.

    Attributes:
        known: W&B runs that have been looked at.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.known: set[str] = set()
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            store = s3.up(self._directory / "s3", bucket=BUCKET)
            exits.callback(s3.down, self._directory / "s3")
            self.wandb = exits.enter_context(wandb_server(self._directory / "wandb"))
            self.environment = {**store.environment, **self.wandb.variables, "WANDB_MODE": "online"}
            self._put_corpus(store.environment)
            self.a = exits.enter_context(Lab(self._directory / "a", num_nodes=2))
            self.b = exits.enter_context(Lab(self._directory / "b", num_nodes=1))
            _describe(self.a, nodes=2, layout={"pipeline": 2})
            _describe(self.b, nodes=1, layout={"tensor": 2})
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._exits.__exit__(*raised)

    def _put_corpus(self, environment: Mapping[str, str]) -> None:
        corpus = write_corpus(self._directory / "corpus", train=8 * STEPS, validation=8)
        store = s3.client(environment)
        for path in sorted(corpus.rglob("*")):
            if path.is_file():
                name = f"corpus/{path.relative_to(corpus)}"
                store.upload_file(str(path), BUCKET, name)
        shutil.rmtree(corpus)

    def submit(
        self, cluster: Lab, name: str, *overrides: str, environment: Mapping[str, str] = {}
    ) -> Job:
        """Submit a run of that name by `tools.submit`.

        Raises:
            RefusedError: it is not taken, and why.
        """
        command = [sys.executable, "-m", "tools.submit"]
        said = self._said(cluster, command, name, overrides, environment)
        number = re.search(r"^job ([0-9]+): ", said, re.MULTILINE)
        if number is None:
            raise RefusedError(said)
        return _job(cluster, int(number[1]), name)

    def submit_by_hand(
        self, cluster: Lab, name: str, *overrides: str, environment: Mapping[str, str] = {}
    ) -> Job:
        """Submit a run of that name by `sbatch`, which looks at nothing before."""
        command = ["sbatch", "--nodes=1", "--ntasks-per-node=2", "slurm/pretrain.sh"]
        said = self._said(cluster, command, name, overrides, environment)
        return _job(cluster, int(said.split()[-1]), name)

    def _said(
        self,
        cluster: Lab,
        command: Sequence[str],
        name: str,
        overrides: Sequence[str],
        environment: Mapping[str, str],
    ) -> str:
        mirrored = () if name == "calm" else (f"cluster.store=s3://{BUCKET}/mirrors",)
        done = subprocess.run(
            [*command, *LINE, f"run_directory={_run(cluster, name)}", *mirrored, *overrides],
            cwd=cluster.project,
            env={**os.environ, **self.environment, **cluster.slurm.environment, **environment},
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr


class RefusedError(Exception):
    """A run was not submitted."""


def _describe(cluster: Lab, *, nodes: int, layout: Mapping[str, int]) -> None:
    own = {"nodes": nodes, "ranks_per_node": 2, "environment": {"GLOO_SOCKET_IFNAME": "lo"}}
    about = {
        "cluster": own,
        "layout": dict(layout),
        "zero": {"stage": 1},
        "storage": {"cache": str(cluster.directory / "cache")},
    }
    (cluster.project / "cluster.yaml").write_text(yaml.safe_dump(about))
    shutil.copy(TINY_RUN, cluster.project / "tiny_run.yaml")


def _job(cluster: Lab, number: int, name: str) -> Job:
    return Job(cluster.slurm, number, project=cluster.project, directory=_run(cluster, name))


def _run(cluster: Lab, name: str) -> Path:
    return cluster.directory / "runs" / name


def moved(clusters: Clusters) -> Outcome:
    """B is refused while A trains, and goes on once A was cancelled and all it had is gone."""
    a, b = clusters.a, clusters.b
    first = clusters.submit(a, "moved", environment=SLOWLY)
    first.wait_for_step(3)
    said: dict[str, str] = {}
    try:
        clusters.submit(b, "moved")
    except RefusedError as error:
        said["b at submission, while a runs"] = str(error).strip()
    refused = clusters.submit_by_hand(b, "moved", IN_A_CONTAINER)
    states = {"b while a runs": refused.end()}
    said["b in its job, while a runs"] = _sentence(refused, " is in use by another process")
    assert not refused.directory.exists(), "it has written nothing"
    first.wait_for_step(STOPPED_AT)
    a.slurm.call("scancel", str(first.number))
    states["a"] = first.end()
    made = max(first.steps)
    for lost in (a.project, a.directory / "runs", a.directory / "cache"):
        shutil.rmtree(lost)
    second = clusters.submit(b, "moved")
    states["b"] = second.end()
    return _outcome(clusters, second, states=states, said=said, first_step=made + 1)


def taken_over(clusters: Clusters) -> Outcome:
    """A is frozen, as if its network were cut, until B has gone on, and wakes up beside it."""
    first = clusters.submit(clusters.a, "taken-over", environment=SLOWLY)
    first.wait_for_step(STOPPED_AT)
    frozen = _processes(first)
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    second = clusters.submit_by_hand(clusters.b, "taken-over", IN_A_CONTAINER, environment=SLOWLY)
    second.wait_for_step(STOPPED_AT + SAVED_EVERY)
    for process in reversed(frozen):
        process.send_signal(signal.SIGCONT)
    states = {"a": first.end()}
    said = {
        "b": _sentence(second, "to see whether that lives"),
        "a": _sentence(first, " was taken over by another process"),
    }
    assert second.state == "RUNNING", "it is to end later"
    states["b"] = second.end()
    starts = read_metrics(RunDirectory(second.directory).metrics).runs
    found = _outcome(clusters, second, states=states, said=said, first_step=starts[-1].step + 1)
    by_a = [step for step in _saved_by(first, second) if step >= found.first_step]
    faults = [f"a saved step {step} after b had begun" for step in by_a]
    return replace(found, faults=[*found.faults, *faults])


def _processes(job: Job) -> list[psutil.Process]:
    """What a job has started, its keeper first."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == str(job.number):
                found.append(process)
    return sorted(found, key=lambda process: "tools.keep" not in process.cmdline())


def _sentence(job: Job, words: str) -> str:
    """The line of a job's output that holds some words; its end where none does."""
    lines = [line for line in job.output.splitlines() if words in line]
    return lines[0] if lines else f"nothing of that, but: {job.output[-2000:]}"


def _saved_by(job: Job, last: Job) -> list[int]:
    """The steps in a run's mirror that a job has saved."""
    place = Place.parse(f"s3://{BUCKET}/mirrors/{last.directory.name}/checkpoints")
    states = ((step, read_state(place / name, RunState)) for name in complete(place)
              for step in [step_of(place / name)])  # fmt: skip
    return [step for step, state in states if state.config["run_directory"] == str(job.directory)]


def _outcome(
    clusters: Clusters, last: Job, *, states: dict[str, str], said: dict[str, str], first_step: int
) -> Outcome:
    """What there is of a run in the end, beside the one that nothing disturbed."""
    assert states["b"] == "COMPLETED", last.output
    calm = dict(losses_of(clusters.a.directory / "calm"))
    losses = dict(losses_of(last.directory))
    differences = {step: abs(loss / calm[step] - 1) for step, loss in losses.items()}
    metrics = read_metrics(RunDirectory(last.directory).metrics)
    new = set(clusters.wandb.run_ids) - clusters.known
    clusters.known |= new
    assert new == {record.wandb_run_id for record in metrics.runs}
    rows = [row["_step"] for run_id in new for row in clusters.wandb.rows(run_id)
            if "train/loss" in row]  # fmt: skip
    findings = check_run(last.directory)
    faults = [*map(str, findings.faults)]
    if findings.steps != STEPS:
        faults.append(f"the ledger has {findings.steps} steps")
    return Outcome(
        states=states,
        said=said,
        first_step=first_step,
        loss_difference_first_step=differences[first_step],
        largest_loss_difference=max(differences.values()),
        wandb_runs=len(new),
        missing_steps=sum(len(set(range(1, STEPS + 1)) - set(made)) for made in (losses, rows)),
        repeated_steps=sum(len(made) - len(set(made)) for made in (last.steps, rows)),
        faults=faults,
    )


def played(directory: Path) -> dict[str, Outcome]:
    """Both runs, by name."""
    with Clusters(directory) as clusters, changed_environment(clusters.environment):
        calm = clusters.submit(clusters.a, "calm")
        assert calm.end() == "COMPLETED", calm.output
        calm.directory.rename(clusters.a.directory / "calm")
        clusters.known.update(clusters.wandb.run_ids)
        return {"taken over": taken_over(clusters), "moved": moved(clusters)}


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Play both; 1 if something is not as on one cluster."""
    parser = Parser(prog="python -m tests.cluster.two_clusters", description=__doc__)
    parser.add_argument("--out", type=output_file, default="out/two-clusters.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="two-") as directory:
        outcomes = played(Path(directory))
    report = asdict(outcomes["moved"]) | {"taken_over": asdict(outcomes["taken over"])}
    write_json(options.out, report)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return int(not all(outcome.is_well for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
