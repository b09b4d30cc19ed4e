"""`sbatch slurm/pretrain.sh` on a real two-node cluster equals the same run without Slurm."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.lab_fixtures import SlurmLab
from tests.train.runs import TINY_RUN, run
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

REPOSITORY = Path(__file__).parent.parent.parent
LAYOUT = ("zero.stage=3", "steps=30", "checkpoint.every_steps=10")


@pytest.fixture
def submitted_from(tmp_path: Path) -> Path:
    """A directory as a user would submit from: the repository's code, and no earlier output."""
    directory = tmp_path / "work"
    directory.mkdir()
    for name in ("model", "parallel", "train", "tools", "slurm", "configs"):
        (directory / name).symlink_to(REPOSITORY / name)
    (directory / ".venv").symlink_to(Path(sys.prefix))
    shutil.copyfile(TINY_RUN, directory / "tiny.yaml")
    return directory


def losses(directory: Path) -> list[tuple[int, float, float]]:
    return [
        (r.step, r.loss, r.gradient_norm)
        for r in read_metrics(RunDirectory(directory).metrics).train
    ]


def test_pretraining_under_slurm_equals_without(
    slurm_lab: SlurmLab, submitted_from: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    arguments = ("tiny.yaml", f"data.corpus={corpus}", *LAYOUT)
    job = slurm_lab.submit(
        "slurm/pretrain.sh", *arguments, "run_directory=run", directory=submitted_from
    )
    run(corpus, tmp_path / "plain", *LAYOUT, ranks=2)
    ended = slurm_lab.wait(job, timeout_seconds=120)
    assert ended["JobState"] == "COMPLETED", output(submitted_from)
    assert ended["NumNodes"] == "2"
    assert losses(submitted_from / "run") == losses(tmp_path / "plain")


def test_preempted_run_requeues_and_continues(
    slurm_lab: SlurmLab, submitted_from: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    long = ("zero.stage=1", "steps=400", "checkpoint.every_steps=1000")
    job = slurm_lab.submit(
        "slurm/pretrain.sh",
        *("tiny.yaml", f"data.corpus={corpus}", *long, "run_directory=run"),
        directory=submitted_from,
    )
    metrics = RunDirectory(submitted_from / "run").metrics
    while not (metrics.exists() and '"step": 20,' in metrics.read_text()):
        assert slurm_lab.job(job)["JobState"] in ("PENDING", "RUNNING"), output(submitted_from)
    urgent = slurm_lab.submit(
        "--partition=high", "--exclusive", "--nodes=2", "--wrap=sleep 1", directory=submitted_from
    )
    assert slurm_lab.wait(urgent, timeout_seconds=90)["JobState"] == "COMPLETED"
    ended = slurm_lab.wait(job, timeout_seconds=150)
    assert ended["JobState"] == "COMPLETED", output(submitted_from)
    assert int(ended["Restarts"]) >= 1
    recorded = read_metrics(metrics)
    assert [record.step for record in recorded.train] == list(range(1, 401))
    assert recorded.runs[-1].step > 0, "it began again instead of continuing"


def test_finetuning_under_slurm(slurm_lab: SlurmLab, submitted_from: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    task = write_corpus(tmp_path / "task", with_spans=True)
    run(corpus, tmp_path / "base", "steps=4")
    job = slurm_lab.submit(
        "slurm/finetune.sh",
        *("tiny.yaml", f"data.corpus={task}", "run_directory=lora", f"init_from={tmp_path}/base"),
        *(
            "lora={rank: 4}",
            "spans={text: {kind: stored}}",
            "data.pack=fit",
            "zero.stage=3",
            "steps=6",
        ),
        directory=submitted_from,
    )
    assert slurm_lab.wait(job, timeout_seconds=120)["JobState"] == "COMPLETED", output(
        submitted_from
    )
    assert (submitted_from / "lora" / "adapter" / "adapter_model.safetensors").exists()


def output(directory: Path) -> str:
    return "\n".join(path.read_text()[-4000:] for path in directory.glob("slurm-*.out"))
