"""Ranks on hosts without Slurm: what is read of them, their agents, and the keeper over ssh."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.corpora import write_corpus
from tests.tools.keep.two_hosts import two_hosts
from tests.train.fault_lab import losses_of
from tests.train.runs import TINY_RUN, run
from tools.chaos.processes import ranks_of
from tools.keep import on_host
from tools.keep.__main__ import parsed
from tools.keep.attempt import ATTEMPTS_NAME, read_attempts
from tools.keep.hosts import Hosts
from tools.lab.jobs import SlurmLab
from tools.ledger import check_run
from train.errors import UserError
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.heartbeat import ADDRESS
from train.watch.metrics import read_metrics

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "word", ["configs/experiment/tiny.yaml", "A.yaml", "steps=3", "", ".train"]
)
def test_a_module_that_was_forgotten(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(["--ranks", "2", word, "steps=4"])
    assert f"MODULE: there is no module {word} here: name one" in capsys.readouterr().err


def test_hosts_are_read_as_deepspeed_does(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# ours\n\none slots=8\n  two   slots=4 \n")
    assert Hosts(str(file), ssh=["ssh"]).slots == {"one": 8, "two": 4}
    options = parsed(["--launcher", "deepspeed", "--hostfile", str(file), "train", "A.yaml"])
    assert list(options.hosts.slots) == ["one", "two"]
    assert parsed(["train", "A.yaml"]).hosts is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--hostfile: .*hosts cannot be read .*: name a file"),
        (b"\xff", "--hostfile: .*hosts cannot be read .*: name a file"),
        (b"# none\n", "names no host: write lines such as host1 slots=8"),
        (b"one slots=2\ntwo\n", "--hostfile: line 2 of .* is 'two': write it such as"),
        (b"one slots=0\n", "--hostfile: line 1 of .* is 'one slots=0'"),
        (b"one slots=2\none slots=2\n", "names one twice: leave one out"),
    ],
)
def test_a_file_that_names_no_hosts(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Hosts(str(file), ssh=["ssh"])


def test_a_launcher_that_starts_none_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(["--hostfile", "hosts", "train", "A.yaml"])
    assert ended.value.code == ExitStatus.MISTAKE
    said = capsys.readouterr().err
    assert "--hostfile: plain starts no ranks on other hosts: add --launcher deepspeed" in said


RANK = """\
import os, signal, time

def tell(word):
    with open("told", "a") as file:
        file.write(word + "\\n")

def save(number, frame):
    tell("asked")
    os._exit(75)

signal.signal(signal.SIGUSR1, save)
tell("begun")
time.sleep(600)
"""
"""In a session of its own, as torchrun has its ranks."""


class Agent:
    """What ssh starts on a host."""

    def __init__(self, directory: Path, script: str) -> None:
        self._directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", on_host.__name__],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
        )
        environment = {**os.environ, ADDRESS: f"127.0.0.1:9:{directory.name}"}
        given = {"script": f"cd {directory}\n{script}", "environment": environment}
        self.say(json.dumps(given).encode() + b"\n")

    def say(self, words: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words)
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    @property
    def told(self) -> list[str]:
        file = self._directory / "told"
        return file.read_text().split() if file.exists() else []


def wait_for(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def marked(directory: Path) -> list[psutil.Process]:
    """Processes that an agent has started."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(ADDRESS, "").endswith(f":{directory.name}"):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    ("words", "told", "status"),
    [(on_host.ASK, ["begun", "asked"], 75), (None, ["begun", "asked"], 75),
     (on_host.KILL, ["begun"], 128 + signal.SIGKILL)],
    ids=["asked", "alone", "killed"],
)  # fmt: skip
def test_an_agent_passes_on_what_the_keeper_asks(
    words: bytes | None, told: list[str], status: int, tmp_path: Path
) -> None:
    """Or asks by itself, where the keeper's words have ended."""
    (tmp_path / "rank.py").write_text(RANK)
    agent = Agent(tmp_path, f"trap '' USR1\nsetsid --wait {sys.executable} rank.py\n")
    wait_for(lambda: agent.told == ["begun"])
    if words is None:
        agent.close()
    else:
        agent.say(words)
    assert agent.process.wait(timeout=60) == status
    assert agent.told == told
    assert not marked(tmp_path)


STEPS = 40
LINE = (
    *(f"steps={STEPS}", "checkpoint.every_steps=5", f"validation.every_steps={STEPS}"),
    *("zero.stage=3", "precision=fp32"),
)


class Kept:
    """A keeper of ranks on two hosts."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.keep", *words],
                cwd=REPOSITORY,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for_step(self, directory: Path, step: int) -> None:
        metrics = RunDirectory(directory).metrics

        def is_there() -> bool:
            assert self.process.poll() is None, self.output
            return metrics.exists() and any(
                each.step >= step for each in read_metrics(metrics).train
            )

        wait_for(is_there, seconds=240)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_two_hosts_without_slurm_then_slurm(
    launcher: str, slurm_lab: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank is killed there, then all are asked to stop, and a job goes on."""
    corpus = write_corpus(tmp_path / "corpus", train=320, validation=8)
    run(corpus, tmp_path / "whole", *LINE, ranks=2)
    directory = tmp_path / "run"
    words = ["train", str(TINY_RUN), *LINE, f"data.corpus={corpus}", f"run_directory={directory}"]
    with two_hosts(tmp_path / "ssh") as hosts:
        options = ["--launcher", launcher, "--hostfile", str(hosts.hostfile), "--ssh", hosts.ssh]
        kept = Kept([*options, *words], tmp_path / "keeper.log")
        kept.wait_for_step(directory, 12)
        ranks_of(directory, variable="RANK")[1].kill()
        wait_for(lambda: len(read_attempts(directory / ATTEMPTS_NAME)) == 1, seconds=120)
        kept.wait_for_step(directory, 16)
        kept.process.send_signal(signal.SIGTERM)
        assert kept.process.wait(timeout=240) == ExitStatus.SAVED, kept.output
    first, second = read_attempts(directory / ATTEMPTS_NAME)
    verdict = first.verdict
    assert (verdict.kind, verdict.rank, verdict.node) == ("dead", 1, "two"), kept.output
    assert (first.nodes, first.num_ranks) == (["one", "two"], 2)
    assert second.verdict.kind == "stopped by a signal"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    job = slurm_lab.submit(
        *("--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path / 'job.out'}"),
        *("slurm/pretrain.sh", *words[1:]),
        directory=REPOSITORY,
    )
    ended = slurm_lab.wait(job, timeout_seconds=240)
    assert ended["JobState"] == "COMPLETED", (tmp_path / "job.out").read_text()
    assert losses_of(directory) == losses_of(tmp_path / "whole")
    findings = check_run(directory)
    assert (findings.faults, findings.steps) == ([], STEPS)
