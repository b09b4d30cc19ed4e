"""Nodes that die, hang or are slow, on the lab's real Slurm, under the real trainer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from tests.cluster.allocated import Allocated
from tests.corpora import VOCABULARY, write_corpus
from tests.train.fault_lab import losses_of
from tools.chaos.project import make_project, replace_main
from tools.keep.attempt import ATTEMPTS_NAME, Attempt, read_attempts
from tools.lab import slurm
from tools.lab.daemons import Record
from tools.lab.jobs import SlurmLab
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

LINE = (
    *("slurm/pretrain.sh", "configs/experiment/tiny.yaml", "configs/cluster/lab.yaml"),
    f"model.decoder.vocabulary={VOCABULARY}",
)
STEPS = 40
CALM = (f"steps={STEPS}", "checkpoint.every_steps=5", f"validation.every_steps={STEPS}")


@dataclass
class Lab:
    """A cluster of three nodes, and a checkout to submit from."""

    record: Record
    slurm: SlurmLab
    checkout: Path

    def submit(self, *flags_and_arguments: str) -> int:
        return self.slurm.submit(*flags_and_arguments, directory=self.checkout)

    def run(self, name: str) -> Path:
        return self.checkout / name

    def ranks(self, name: str, node: str | None = None) -> list[psutil.Process]:
        """The processes of a run's ranks, on a node or on all."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                is_rank = process.cmdline()[1:3] == ["-m", "train"]
                if is_rank and f"run_directory={name}" in process.cmdline():
                    on = process.environ()["SLURMD_NODENAME"]
                    found += [process] if node in (None, on) else []
            except (psutil.Error, KeyError):
                continue
        return found

    def ended(self, job: int, name: str) -> tuple[dict[str, str], list[Attempt]]:
        """How a job has ended, and the attempts that were made in it."""
        fields = self.slurm.wait(job, timeout_seconds=400)
        said = "\n".join(path.read_text()[-6000:] for path in self.checkout.glob("slurm-*.out"))
        assert fields["JobState"] == "COMPLETED", said
        return fields, read_attempts(self.run(name) / ATTEMPTS_NAME)


@pytest.fixture
def lab(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    checkout = tmp_path / "checkout"
    make_project(checkout, main=None)
    write_corpus(checkout / "data" / "tiny", sequence_tokens=128)
    directory = tmp_path_factory.mktemp("lab")  # a test's own is too long for a socket
    record = slurm.up(directory, num_nodes=3, num_cpus=2)
    for name, value in {**record.environment, "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    try:
        yield Lab(record, SlurmLab(directory, record.environment), checkout)
    finally:
        slurm.down(directory)


def wait_for(condition: Callable[[], bool], *, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_steps(run: Path, steps: int) -> None:
    metrics = RunDirectory(run).metrics
    wait_for(lambda: metrics.exists() and len(read_metrics(metrics).train) >= steps)


def check_ledger(lab: Lab, run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.ledger", "check", str(run)],
        cwd=lab.checkout, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def stand_in(lab: Lab, before: str = "") -> None:
    """Ranks are quick: they tell all and compute nothing; others say what it does to losses.

    Args:
        lab: from whose checkout they start.
        before: what they do before they can speak.
    """
    replace_main(lab.checkout, before + (Path(__file__).parent / "stand_in.py").read_text())


LATE = """\
import os, time
from pathlib import Path

if os.environ["SLURM_PROCID"] == "1" and not Path("late").exists():
    Path("writing").write_text(str(os.getpid()))
    Path("writing").rename("late")
    time.sleep(100)

"""


@pytest.mark.parametrize(
    "launcher",
    ["srun", *(pytest.param(each, marks=pytest.mark.long) for each in ("torchrun", "deepspeed"))],
)
def test_a_rank_that_dies_before_it_can_speak(lab: Lab, launcher: str) -> None:
    """Srun says nothing of it while the others live."""
    stand_in(lab, before=LATE)
    (lab.checkout / "config.yaml").write_text(f"cluster: {{launcher: {launcher}}}\n")
    job = lab.submit(
        *("--nodes=2", "--ntasks-per-node=1", "slurm/pretrain.sh", "config.yaml"),
        *("run_directory=run", "stand_in.num_steps=5"),
    )
    late = lab.checkout / "late"
    wait_for(late.exists)
    os.kill(int(late.read_text()), signal.SIGKILL)
    killed = time.time()
    fields, (first, last) = lab.ended(job, "run")
    verdict = first.verdict
    assert (verdict.kind, verdict.rank, verdict.node) == ("dead", 1, "node2")
    assert verdict.is_sure
    assert first.ended - killed < 30
    assert (fields["Restarts"], last.verdict.kind, last.last_step) == ("0", "complete", 5)


def test_ctrl_c_at_the_terminal_of_an_allocation(lab: Lab) -> None:
    stand_in(lab)
    (lab.checkout / "config.yaml").write_text("{}\n")
    arguments = ["config.yaml", "run_directory=run", "stand_in.num_steps=100000"]
    job = Allocated(lab.slurm, arguments, project=lab.checkout, directory=lab.run("run"))
    steps = lab.run("run") / "steps.txt"
    wait_for(lambda: steps.exists() and len(steps.read_text().splitlines()) >= 5)
    job.type("\x03")
    job.end()
    assert job.status == ExitStatus.SAVED, job.output
    assert "SIGINT received, asking the ranks to save and stop" in job.output
    assert "Traceback" not in job.output
    [attempt] = job.attempts
    assert attempt.verdict.kind == "stopped by a signal"


@pytest.mark.long  # a case of make faults-cluster, too
def test_a_spare_node_takes_a_dead_one_s_place(lab: Lab) -> None:
    stand_in(lab)
    (lab.checkout / "config.yaml").write_text("cluster: {nodes: 2, spare_nodes: 1}\n")
    job = lab.submit(
        *("--nodes=3", "--ntasks-per-node=1", "slurm/pretrain.sh", "config.yaml"),
        *("run_directory=run", "stand_in.num_steps=60"),
    )
    steps = lab.run("run") / "steps.txt"
    wait_for(lambda: steps.exists() and len(steps.read_text().splitlines()) >= 10)
    slurm.kill_node(lab.record, "node2")
    fields, (first, last) = lab.ended(job, "run")
    assert fields["Restarts"] == "0"
    verdict = first.verdict
    assert (verdict.kind, verdict.rank, verdict.node) == ("dead", 1, "node2")
    assert verdict.is_sure
    assert (first.gone, first.left_out) == (["node2"], {"node3": "is spare"})
    assert (last.nodes, last.left_out) == (["node1", "node3"], {"node2": "does not answer"})
    told = [line.split() for line in steps.read_text().splitlines()]
    assert [int(step) for step, _ in told] == list(range(1, 61))
    assert list(dict.fromkeys(nodes for _, nodes in told)) == ["node[1-2]", "node[1,3]"]
    [said] = lab.checkout.glob(f"slurm-*-{job}.out")
    assert (
        f"keeper: {verdict.sentence}: starting again, for node2 does not answer: on node1, node3"
    ) in said.read_text()


@pytest.mark.long
def test_a_dead_node_s_place_is_taken_by_a_spare_one_or_by_none(lab: Lab) -> None:
    """Without requeueing: first with a spare node, then, with that dead, on half as many."""
    undisturbed = lab.submit(*LINE, *CALM, "run_directory=calm")
    lab.ended(undisturbed, "calm")

    spare = ("--nodes=3", *LINE, *CALM, "cluster.spare_nodes=1", "run_directory=spare")
    job = lab.submit(*spare)
    wait_for_steps(lab.run("spare"), 12)
    assert len(lab.ranks("spare", "node2")) == 2
    assert lab.ranks("spare", "node3") == []
    slurm.kill_node(lab.record, "node2")
    fields, (first, last) = lab.ended(job, "spare")
    assert fields["Restarts"] == "0"
    verdict = first.verdict
    assert (verdict.kind, verdict.node, verdict.is_sure) == ("dead", "node2", True)
    assert verdict.rank in (2, 3)
    assert (first.gone, first.left_out) == (["node2"], {"node3": "is spare"})
    assert (last.nodes, last.left_out) == (["node1", "node3"], {"node2": "does not answer"})
    assert last.first_step is not None
    assert last.first_step >= 5
    assert losses_of(lab.run("spare")) == losses_of(lab.run("calm"))
    check_ledger(lab, lab.run("spare"))

    job = lab.submit("--nodes=2", *LINE, *CALM, "keep.fewer_nodes=true", "run_directory=fewer")
    wait_for_steps(lab.run("fewer"), 12)
    slurm.kill_node(lab.record, "node3")
    fields, (first, last) = lab.ended(job, "fewer")
    assert fields["Restarts"] == "0"
    assert (first.verdict.kind, first.verdict.node, first.gone) == ("dead", "node3", ["node3"])
    assert (first.num_ranks, last.num_ranks, last.nodes) == (4, 2, ["node1"])
    assert (first.overrides, last.overrides[0][:14]) == ([], "layout.tensor=")
    np.testing.assert_allclose(losses_of(lab.run("fewer")), losses_of(lab.run("calm")), rtol=1e-5)
    check_ledger(lab, lab.run("fewer"))


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_agents_begin_on_a_spare_node_too(lab: Lab, launcher: str) -> None:
    own = (f"cluster.launcher={launcher}", "cluster.spare_nodes=1", "run_directory=run")
    job = lab.submit("--nodes=3", *LINE, *CALM, *own)
    wait_for_steps(lab.run("run"), 7)
    slurm.kill_node(lab.record, "node2")
    fields, (first, last) = lab.ended(job, "run")
    assert fields["Restarts"] == "0"
    assert (first.verdict.kind, first.verdict.node, first.gone) == ("dead", "node2", ["node2"])
    assert (last.verdict.kind, last.nodes) == ("complete", ["node1", "node3"])
    assert [step for step, _ in losses_of(lab.run("run"))] == list(range(1, STEPS + 1))


@pytest.mark.long
def test_without_either_the_job_goes_back_and_begins_on_other_nodes(lab: Lab) -> None:
    job = lab.submit("--nodes=2", *LINE, *CALM, "run_directory=run")
    wait_for_steps(lab.run("run"), 7)
    slurm.kill_node(lab.record, "node2")
    fields, (first, last) = lab.ended(job, "run")
    assert fields["Restarts"] == "1"
    assert (first.verdict.kind, first.gone) == ("dead", ["node2"])
    assert (last.verdict.kind, last.nodes) == ("complete", ["node1", "node3"])
    assert [step for step, _ in losses_of(lab.run("run"))] == list(range(1, STEPS + 1))


@pytest.mark.long
def test_a_rank_that_is_stopped_on_another_node_is_seen_and_standbys_take_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP_OPTIONS", "--least-seconds=3")
    job = lab.submit("--nodes=2", *LINE, *CALM, "keep.warm=true", "run_directory=run")
    wait_for_steps(lab.run("run"), 12)
    wait_for(lambda: len(lab.ranks("run")) == 8)
    time.sleep(10)  # for their imports, while the others run on; long runs have the time
    stopped = min(lab.ranks("run", "node2"), key=lambda process: process.create_time())
    rank = int(stopped.environ()["SLURM_PROCID"])
    stopped.send_signal(signal.SIGSTOP)
    _, (first, last) = lab.ended(job, "run")
    verdict = first.verdict
    assert (verdict.kind, verdict.rank, verdict.node) == ("stopped", rank, "node2"), verdict
    assert verdict.is_sure
    assert last.verdict.kind == "complete"


BUSY = """\
import os, signal, sys, time
os.sched_setaffinity(0, [0])
signal.alarm(240)
while True: pass
"""

SPOILED = """\
#!/bin/bash
# The disk of temporary files takes a megabyte on one of the nodes.
[[ $SLURMD_NODENAME != node2 || " $* " != *" tools.keep.trying "* ]] || ulimit -f 1000
exec "$@"
"""


@pytest.mark.long
def test_a_node_that_fails_in_its_try_out_is_left_out_for_a_spare_one(lab: Lab) -> None:
    """That others are held against the median is another test's: these share two cores."""
    enter = lab.checkout / "enter"
    enter.write_text(SPOILED)
    enter.chmod(0o755)
    own = {"cluster": {"container": [str(enter)], "spare_nodes": 1}, "keep": {"try_nodes": True}}
    (lab.checkout / "own.yaml").write_text(yaml.safe_dump(own))
    job = lab.submit("--nodes=3", *LINE, "own.yaml", "steps=4", "run_directory=run")
    _, [attempt] = lab.ended(job, "run")
    [said] = lab.checkout.glob(f"slurm-*-{job}.out")
    assert "keeper: node2 did not end its try-out" in said.read_text()
    assert attempt.nodes == ["node1", "node3"]
    assert attempt.left_out == {"node2": "did not end its try-out"}


@pytest.mark.long
def test_a_slow_rank_s_node_makes_room_for_a_spare_one(lab: Lab) -> None:
    """Its core has to be shared with others; what all compute stays the same."""
    calm = (f"steps={STEPS * 10}", "checkpoint.every_steps=200", "validation.every_steps=400")
    job = lab.submit(
        *("--nodes=3", "--ntasks-per-node=1", *LINE, *calm, "layout.tensor=1", "zero.stage=1"),
        *("cluster.ranks_per_node=1", "cluster.spare_nodes=1", "keep.leave_out_slow=true"),
        "run_directory=run",
    )
    wait_for_steps(lab.run("run"), 5)
    [quick], [slow] = lab.ranks("run", "node1"), lab.ranks("run", "node2")
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(4)]
    try:
        for process, core in ((slow, 0), (quick, 1)):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, [core])
        wait_for(lambda: len(read_attempts(lab.run("run") / ATTEMPTS_NAME)) == 1)
    finally:
        for each in busy:
            each.kill()
    _, (first, last) = lab.ended(job, "run")
    verdict = first.verdict
    assert (verdict.kind, verdict.rank, verdict.node, verdict.is_sure) == ("slow", 1, "node2", True)
    assert list(first.slow_ranks) == [1]
    assert first.slow_ranks[1] > 1.2
    # It had saved where it stopped.
    assert last.first_step == first.last_step
    assert (last.nodes, last.left_out) == (["node1", "node3"], {"node2": "was slow"})
    assert [step for step, _ in losses_of(lab.run("run"))] == list(range(1, STEPS * 10 + 1))
