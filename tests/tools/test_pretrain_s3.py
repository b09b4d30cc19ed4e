"""`make pretrain DATA=s3://…`: text into shards in a bucket, and a run that reads them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.lab_fixtures import S3Lab
from tools.corpus.__main__ import main as shards
from tools.ledger import check_run

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.long
def test_make_pretrain_reads_a_bucket(s3_lab: S3Lab, tmp_path: Path, monkeypatch) -> None:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    data = f"s3://{s3_lab.bucket}/make-pretrain"
    texts = sorted(str(path) for path in (ROOT / "docs").rglob("*.md"))
    build = ["build", *texts, str(ROOT / "README.md"), data]
    assert (
        shards([*build, "--vocabulary", "1024", "--validation", "0.3", "--shard-mebibytes", "0.05"])
        == 0
    )
    run = tmp_path / "run"
    arguments = [
        *(
            f"run_directory={run}",
            f"storage.cache={tmp_path / 'cache'}",
            "storage.cache_gib=1",
            "steps=4",
        ),
        *("model.decoder.vocabulary=1024", "batch.sequences=4", "batch.micro_sequences=2"),
        *("optim.warmup_steps=1", "validation.every_steps=4", "validation.sequences=4"),
        *("checkpoint.every_steps=2", "samples.prompts=[]", "watch.wandb=disabled"),
        *(f"--out={tmp_path / 'pretrain.json'}", "precision=fp32"),
    ]
    ended = subprocess.run(
        ["make", "pretrain", f"DATA={data}", f"ARGS={' '.join(arguments)}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-6000:]
    summary = json.loads((tmp_path / "pretrain.json").read_text())
    assert summary["steps"] == 4
    assert summary["validation_loss_last"] < summary["validation_loss_first"]
    findings = check_run(run)
    assert (findings.steps, findings.faults, findings.starts) == (4, [], [2])
    assert any((tmp_path / "cache").rglob("*.mds")), "nothing came from the bucket"
