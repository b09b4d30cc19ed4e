"""A run whose checkpoints go to object storage."""

from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.lab_fixtures import S3Lab
from tests.train.runs import run, start
from train.checkpoint import directory as checkpoint_directory
from train.checkpoint.restore import read_state
from train.storage.place import Place


def test_checkpoints_in_s3_continue_a_run(
    s3_lab: S3Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, url = write_corpus(tmp_path / "corpus"), f"s3://{s3_lab.bucket}/a-run"
    options = ("checkpoint.every_steps=2", f"run_mirror={url}", "checkpoint.keep=9")
    whole = run(corpus, tmp_path / "whole", "steps=5")
    environment = s3_lab.environment
    run(corpus, tmp_path / "run", "steps=5", *options, environment=environment)
    assert not (tmp_path / "run" / "checkpoints").exists()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    place = Place.parse(url) / "checkpoints"
    assert checkpoint_directory.complete(place) == [f"step_{step:08d}" for step in (2, 4, 5)]
    again = start(corpus, tmp_path / "run", "steps=5", *options, environment=environment).wait()
    assert f"is complete: {place}/step_00000005" in again.output
    checkpoint_directory.retire(place, ["step_00000005"])
    (place / "latest").write(b"step_00000004\n")
    resumed = run(corpus, tmp_path / "run", "steps=5", *options, environment=environment)
    assert resumed.runs[-1].step == 4
    assert resumed.train[-1].loss == whole.train[-1].loss
    assert read_state(place).step == 5
