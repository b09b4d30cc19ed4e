"""Commands of the README are run, in its order, in a copy of the repository.

A command that the README gains is run too, unless `ELSEWHERE` says why not.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from backports import zstd

from tests import warm
from tests.corpora import write_tokenizer
from tests.readme.shown import commands
from train.exit_status import ExitStatus

LAB = 'eval "$(python -m tools.lab s3 up --bucket lab)"'
MINUTES = 8

ELSEWHERE = {
    "make test": "is what runs this",
    "sudo apt-get": "is the host's",
    ". .venv/bin/activate": "the fixture's environment",
    "make tasks": "half an hour; tests/tools/tasks",
    "make naming": "a quarter of an hour; tests/tools/media tests/train/test_pictures.py",
    "make fusion": "minutes; tests/tools/test_fusion.py",
    "python -m tools.generate runs/mine": "pictures and sounds; tests/tools/test_generate.py",
    "make comparison": "90 minutes; tests/tools/comparison/test_whole.py",
    "make bench": "minutes, and environments of peers; tests/tools/test_bench.py",
    "make balance": "minutes; tests/tools/test_bench_media.py",
    "make gpu-check": "tests/tools/test_gpu_check.py",
    ".venv/bin/pip": "make .venv/dev has done it",
    "curl": "asked of the server, when that is run",
    "python -m tools.import SOME_LLAMA": "tests/tools/hub/test_assembled.py",
    "python -m tools.assemble": "tests/tools/hub/test_assembled.py",
    "python -m train base/model.yaml": "tests/tools/hub/test_assembled.py",
    "python -m tools.export merged": "tests/tools/hub/test_native.py",
    "deepspeed": "eight GPUs; tests/tools/submit/test_on_the_lab.py",
    "sbatch slurm/pretrain.sh": "tests/train/test_slurm_run.py",
    "sbatch slurm/evaluate.sh": "tests/train/test_slurm_run.py",
    "python -m tools.keep --launcher deepspeed": "hosts; tests/tools/keep/test_hosts.py",
    "eval": "the fixture's store",
    "make dashboard": "serves until it is ended; tests/tools/dashboard",
    "python -m tools.wandb_sync": "wants a server; tests/tools/test_wandb_sync.py",
    "python -m tools.corpus build dump.parquet": "tests/tools/corpus/test_slurm.py",
    "python -m tools.media convert": "data sets of others; tests/tools/media/public",
    "python -m tools.corpus build data/public/": "what that would have made",
    "python -m tools.tasks corpus data/vqa": "what that would have made",
    "python -m tools.plan check": "20 minutes; tests/tools/plan",
    "python -m tools.chaos": "a quarter of an hour; tests/tools/chaos",
    "make parity": "half an hour; tests/distributed/parity",
    "OMP_NUM_THREADS=1 python -m train": "13.7 GiB, and minutes for a step",
}
"""What is not run here, by how it begins, and why, or where else."""

INSTEAD: dict[tuple[str, ...], str] = {
    ("make", "pretrain"): "make pretrain STEPS=20",
    ("python", "-m", "tools.keep", "--ranks"): (
        "python -m tools.keep --ranks 2 --warm train A.yaml steps=10"
    ),
    ("python", "-m", "tools.status", "runs/a"): "python -m tools.status runs/a runs/mine",
    ("python", "-m", "train", "configs/experiment/metalm_1p3b.yaml"): (
        "python -m train configs/experiment/metalm_1p3b.yaml out/layout.yaml --print"
    ),
}
"""What is run in a smaller way, or on what the fixture has prepared."""

SHOWN = [each for each in commands(warm.REPOSITORY / "README.md") if each.is_whole]
RUN = [each for each in SHOWN if not any(str(each).startswith(begins) for begins in ELSEWHERE)]

A = """
include: [configs/model/tiny.yaml]
name: NAME
run_directory: runs/NAME
steps: 24
data: {corpus: data/first_light, sequence_tokens: 256, pack: stream}
batch: {sequences: 8, micro_sequences: 2}
optim: {lr: 1.0e-3, warmup_steps: 2, schedule: constant}
spans: {text: {kind: random, ratio: 0.25}}
checkpoint: {every_steps: 5}
validation: {every_steps: 100, sequences: 4}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, with what the README's placeholders stand for."""
    here = tmp_path_factory.mktemp("copy")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=warm.REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(warm.REPOSITORY / name, here / name)  # with its time, which make looks at
    (here / ".venv").symlink_to(warm.REPOSITORY / ".venv")
    (here / "A.yaml").write_text(A.replace("NAME", "a"))
    (here / "B.yaml").write_text("name: mine\nrun_directory: runs/mine\n")
    (here / "my/texts").mkdir(parents=True)
    (here / "pairs").mkdir()
    lines = [json.dumps({"text": f"A page about {n} wikis, and no more."}) for n in range(3000)]
    for number in range(200):
        (here / f"my/texts/{number}.txt").write_text(f"Page {number} of a book of mine.\n")
    (here / "pairs/all.jsonl").write_text("\n".join(lines))
    write_tokenizer(here / "tokenizer.json")
    (here / "dump.jsonl.zst").write_bytes(zstd.compress("\n".join(lines).encode()))
    return here


@pytest.fixture(scope="module")
def environment(here: Path) -> Iterator[dict[str, str]]:
    """Of a shell in which the README's store has been started, and .venv activated."""
    begun = {
        **os.environ,
        "PATH": f"{warm.REPOSITORY}/.venv/bin:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "XDG_CONFIG_HOME": str(here / "config"),
    }
    assert LAB in (here / "README.md").read_text()
    shell = f"set -e; {LAB}; env -0"
    told = subprocess.run(
        ["bash", "-c", shell], cwd=here, env=begun, capture_output=True, check=True, timeout=120
    )
    pairs = filter(None, os.fsdecode(told.stdout).split("\0"))
    try:
        yield dict(pair.split("=", 1) for pair in pairs)
    finally:
        down = ["python", "-m", "tools.lab", "s3", "down"]
        subprocess.run(down, cwd=here, env=begun, check=True, timeout=60)


@pytest.mark.long
@pytest.mark.timeout(60 * MINUTES)
@pytest.mark.parametrize("number", range(len(RUN)), ids=[f"line {each.line}" for each in RUN])
def test_a_command_runs(number: int, here: Path, environment: dict[str, str]) -> None:
    command = RUN[number]
    text = INSTEAD.get(command.words[:4]) or shlex.join(command.words)
    text = text.replace("s3://bucket/", "s3://lab/")
    if command.words[:3] == ("python", "-m", "tools.serve"):
        text = served(text)
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"README.md:{command.line}: {text}\n{done.stdout[-3000:]}"


def served(command: str) -> str:
    """Starts the server, asks it as the README does, and ends it as the README says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    [ask] = [shlex.join(each.words) for each in SHOWN if each.words[0] == "curl"]
    ask = ask.replace(":8000/", f":{port}/").replace("curl -s", "curl -sf")
    return (
        f"set -m; {command} --port {port} & server=$!; "
        f"until curl -sf http://127.0.0.1:{port}/v1/models; "
        "do kill -0 $server || exit 1; sleep 1; done; "
        f"{ask} || exit 1; kill -INT $server; wait $server; [ $? = {ExitStatus.INTERRUPTED:d} ]"
    )


def test_what_is_run_elsewhere_is() -> None:
    for begins, reason in ELSEWHERE.items():
        assert any(str(each).startswith(begins) for each in SHOWN), f"{begins}: is shown no more"
        for path in re.findall(r"tests/\S+", reason):
            assert (warm.REPOSITORY / path).exists(), path
    assert len(RUN) > 30
