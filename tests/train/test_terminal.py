"""Ctrl-C on a terminal: once saves and says how to go on, twice ends at once."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.terminal import Terminal
from tests.train.runs import TINY_RUN
from tools.lab.daemons import free_ports

ROOT = Path(__file__).parents[2]
LONG = (
    *("steps=100000", "validation.every_steps=100000", "checkpoint.every_steps=100000"),
    *("watch={progress: false, log_every_steps: 5, wandb: disabled}", "samples.prompts=[]"),
)
SMALL = (
    "model.decoder={vocabulary: 300, width: 32, num_layers: 2, heads: 4, feed_forward: 64, "
    "max_tokens: 64}",
    *("spans.text={kind: random, ratio: 0.0}", "data.sequence_tokens=64"),
    *("batch={sequences: 8, micro_sequences: 2}", "optim.warmup_steps=2"),
)
TRAIN = ("-m", "train", str(TINY_RUN), *LONG)
PORT = str(free_ports(1)[0])
DEEPSPEED = ("-m", "deepspeed.launcher.runner", "--num_gpus=2", f"--master_port={PORT}")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={PORT}")
PRETRAIN = ("-m", "tools.pretrain", *LONG, *SMALL)
SAVED = "on a signal; run again to continue"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.long  # each starts Python and its libraries anew, and up to four times
@pytest.mark.parametrize(
    ("command", "after", "times", "code", "says"),
    [
        pytest.param(TRAIN, 1.5, 1, -2, "", id="train, importing"),
        pytest.param(TRAIN, "step 5/", 1, 75, SAVED, id="train"),
        pytest.param(PRETRAIN, 1.5, 1, -2, "", id="pretrain, importing"),
        pytest.param(PRETRAIN, "step 5/", 1, 75, f"{SAVED}.*same command goes on", id="pretrain"),
        pytest.param(PRETRAIN, "step 5/", 2, (75, 130), "the same command goes", id="pretrain 2"),
        # Theirs is a traceback of their own, and a status; the ranks save all the same.
        pytest.param(TORCHRUN + TRAIN, "step 5/", 1, None, SAVED, id="torchrun"),
        pytest.param(
            (*DEEPSPEED, "--module", *TRAIN[1:]), "step 5/", 1, None, SAVED, id="deepspeed"
        ),
        pytest.param(
            ("-m", "tools.corpus", "build", str(ROOT), "{run}/corpus", "--vocabulary=512"),
            *(1.5, 1, -2, ""),
            id="corpus, importing",
        ),
    ],
)
def test_ctrl_c(
    command: tuple[str, ...],
    after: str | float,
    times: int,
    code: object,
    says: str,
    corpus: Path,
    tmp_path: Path,
) -> None:
    words = [word.replace("{run}", str(tmp_path)) for word in command]
    if "tools.corpus" not in command:
        words += [f"data.corpus={corpus}", f"run_directory={tmp_path / 'run'}"]
    ended, said = on_a_terminal([sys.executable, *words], after, times)
    if code is not None:
        assert ended in (code if isinstance(code, tuple) else (code,)), said
        assert "Traceback" not in said
    assert re.search(says, said, re.S), said
    if says:
        assert (tmp_path / "run/checkpoints/latest").exists() or list(
            (tmp_path / "run/checkpoints").glob("step_*")
        )


def on_a_terminal(command: list[str], after: str | float, times: int) -> tuple[int, str]:
    """Run a command, press Ctrl-C; its status, and what it has said since."""
    terminal = Terminal()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        stdin=terminal.follower,
        stdout=terminal.follower,
        stderr=terminal.follower,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TERM": "dumb"},
    )
    began = time.monotonic()
    while not (
        after in terminal.screen if isinstance(after, str) else time.monotonic() - began > after
    ):
        assert process.poll() is None, terminal.screen
        assert time.monotonic() - began < 120, terminal.screen
        time.sleep(0.02)
    before = len(terminal.screen)
    for _ in range(times):
        os.write(terminal.leader, b"\x03")
        time.sleep(0.5)
    code = process.wait(timeout=60)
    terminal.close()
    return code, terminal.screen[before:]
