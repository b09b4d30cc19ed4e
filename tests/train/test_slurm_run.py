"""`sbatch slurm/pretrain.sh` on a real two-node cluster equals the same run without Slurm."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, run
from tools.chaos.project import make_project
from tools.lab.jobs import SlurmLab
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

REPOSITORY = Path(__file__).parent.parent.parent
CALM = ("checkpoint.every_steps=1000", "validation.every_steps=1000")
PRETRAINED = REPOSITORY / "tests" / "fixtures" / "run_7cd86b9" / "pretrained"
STEPS = 40
LAYOUT = ("zero.stage=3", f"steps={STEPS}", f"validation.every_steps={STEPS}")


@pytest.fixture
def submitted_from(tmp_path: Path) -> Path:
    """A directory as a user would submit from: the repository's code, and no earlier output."""
    directory = tmp_path / "work"
    make_project(directory, main=None)
    shutil.copyfile(TINY_RUN, directory / "tiny.yaml")
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without Slurm: what one under it must equal, and what one finetunes."""
    directory = tmp_path_factory.mktemp("plain") / "run"
    run(corpus, directory, *LAYOUT, f"checkpoint.every_steps={STEPS}", ranks=2)
    return directory


def losses(directory: Path) -> list[tuple[int, float, float]]:
    return [
        (r.step, r.loss, r.gradient_norm)
        for r in read_metrics(RunDirectory(directory).metrics).train
    ]


def test_a_preempted_run_requeues_continues_and_equals_one_without_slurm(
    slurm_lab: SlurmLab, submitted_from: Path, corpus: Path, plain: Path
) -> None:
    # Each step of the first start takes long, so that preemption comes before the last one.
    pace = submitted_from / "pace.yaml"
    pace.write_text(
        "checkpoint: {every_steps: 1}\n"
        "samples: {prompts: [the, a, driver, page, of, memory, maps, and], max_new_tokens: 60}\n"
    )
    job = slurm_lab.submit(
        *("--ntasks-per-node=1", "slurm/pretrain.sh"),
        *("tiny.yaml", "pace.yaml", f"data.corpus={corpus}", *LAYOUT, "run_directory=run"),
        directory=submitted_from,
    )
    metrics = RunDirectory(submitted_from / "run").metrics
    while not (metrics.exists() and len(read_metrics(metrics).train) >= 3):
        assert slurm_lab.job(job)["JobState"] in ("PENDING", "RUNNING"), output(submitted_from)
        time.sleep(0.1)
    pace.write_text(f"checkpoint: {{every_steps: {STEPS}}}\n")
    urgent = slurm_lab.submit(
        "--partition=high", "--exclusive", "--nodes=2", "--wrap=sleep 1", directory=submitted_from
    )
    assert slurm_lab.wait(urgent, timeout_seconds=90)["JobState"] == "COMPLETED"
    ended = slurm_lab.wait(job, timeout_seconds=150)
    assert ended["JobState"] == "COMPLETED", output(submitted_from)
    assert ended["NumNodes"] == "2"
    assert int(ended["Restarts"]) >= 1
    [said] = submitted_from.glob(f"slurm-*-{job}.out")
    assert "SIGUSR1 received" in said.read_text()
    recorded = read_metrics(metrics)
    assert 3 <= recorded.runs[-1].step < STEPS, "it began again instead of continuing"
    assert [record.step for record in recorded.train] == list(range(1, STEPS + 1))
    assert losses(submitted_from / "run") == losses(plain)
    assert RunDirectory(submitted_from / "run").summary.exists()


@pytest.mark.long
def test_an_evaluation_that_is_warned_asks_what_is_left(
    slurm_lab: SlurmLab, submitted_from: Path
) -> None:
    rows = [{"text": f"page {number}", "label": number % 2} for number in range(600)]
    (submitted_from / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (submitted_from / "task.yaml").write_text(
        "name: parity\ncluster: words\nsource: {directory: .}\n"
        "answer: {kind: choice, choices: [even, odd], label: label}\n"
        "templates: [{name: plain, input: 'the [[ {{ text }} ]] is'}]\n"
        "scoring: {kind: likelihood, per: token}\nmetrics: [accuracy]\n"
    )
    job = slurm_lab.submit(
        "slurm/evaluate.sh",
        *(str(PRETRAINED), "--tasks", "task.yaml", "--scores", "scores", "--batch", "1"),
        directory=submitted_from,
    )
    answers = submitted_from / "scores" / "answers.jsonl"
    while not (answers.exists() and answers.read_bytes().count(b"\n") >= 20):
        assert slurm_lab.job(job)["JobState"] in ("PENDING", "RUNNING"), output(submitted_from)
        time.sleep(0.1)
    slurm_lab.call("scancel", "--batch", "--signal=USR1", str(job))
    ended = slurm_lab.wait(job, timeout_seconds=240)
    assert ended["JobState"] == "COMPLETED", output(submitted_from)
    assert int(ended["Restarts"]) == 1
    found = json.loads((submitted_from / "out" / "scores.json").read_text())
    assert found["tasks"][0]["rows"] == len(rows)
    assert 0 < found["computed"] <= 2 * len(rows) - 20
    kept = [json.loads(line)["key"] for line in answers.read_text().splitlines()]
    assert len(kept) == len(set(kept)) == 2 * len(rows), "an answer was computed twice"


@pytest.mark.long
def test_finetuning_that_is_warned_goes_on_in_another_layout(
    slurm_lab: SlurmLab, submitted_from: Path, corpus: Path, plain: Path, tmp_path: Path
) -> None:
    task = write_corpus(tmp_path / "task", with_spans=True)
    arguments = (f"init_from={plain}", "lora={rank: 4}", "spans={text: {kind: stored}}")
    # At the run's own rate rounding doubles every third step, whatever the layout: 1e-8 to 6e-5.
    arguments += ("data.pack=fit", "steps=40", "precision=fp32", "optim.lr=1e-3", *CALM)
    layout = submitted_from / "layout.yaml"
    layout.write_text("zero: {stage: 3}\n")
    job = slurm_lab.submit(
        "slurm/finetune.sh",
        *("tiny.yaml", "layout.yaml", f"data.corpus={task}", "run_directory=lora", *arguments),
        directory=submitted_from,
    )
    lora = RunDirectory(submitted_from / "lora")
    while not (lora.metrics.exists() and len(read_metrics(lora.metrics).train) >= 3):
        assert slurm_lab.job(job)["JobState"] in ("PENDING", "RUNNING"), output(submitted_from)
        time.sleep(0.05)
    layout.write_text("zero: {stage: 1}\nlayout: {tensor: 2, sequence_parallel: true}\n")
    slurm_lab.call("scancel", "--batch", "--signal=USR1", str(job))
    ended = slurm_lab.wait(job, timeout_seconds=240)
    assert ended["JobState"] == "COMPLETED", output(submitted_from)
    assert int(ended["Restarts"]) == 1
    assert read_metrics(lora.metrics).runs[-1].step < 40, "it had ended before it was warned"
    undisturbed = tmp_path / "undisturbed"
    run(task, undisturbed, "zero.stage=3", *arguments, ranks=2)
    np.testing.assert_allclose(losses(lora.path), losses(undisturbed), rtol=1e-6)
    found, expected = (
        load_file(d / "adapter" / "adapter_model.safetensors") for d in (lora.path, undisturbed)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def output(directory: Path) -> str:
    return "\n".join(path.read_text()[-4000:] for path in directory.glob("slurm-*.out"))
