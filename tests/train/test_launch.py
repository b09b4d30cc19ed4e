"""Launchers' environments and arguments, as `python -m train` meets them."""

from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import start
from train.exit_status import ExitStatus

NONE = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""}
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    ("environment", "code", "told"),
    [
        (BATCH_SCRIPT, 0, "SLURM_NTASKS=8, but srun did not start this process"),
        (BATCH_SCRIPT | {"MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}, 0, "trains alone"),
        ({"MASTER_ADDR": "x"}, 0, "step 2/2"),
        ({"WORLD_SIZE": "4"}, ExitStatus.MISTAKE, "RANK: is missing beside"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, ExitStatus.MISTAKE, "RANK: 'a' is no number"),
    ],
)
def test_half_an_environment(
    environment: dict[str, str], code: int, told: str, corpus: Path, tmp_path: Path
) -> None:
    steps = ("steps=2", "optim.warmup_steps=1", "validation.every_steps=2")
    flags = ("--local-rank=0",) if code else ("--local_rank=0",)
    attempt = start(corpus, tmp_path / "run", *steps, *flags, environment=NONE | environment)
    ended = attempt.wait()
    assert ended.code == code, ended.output
    assert told in ended.output
    assert "Traceback" not in ended.output
