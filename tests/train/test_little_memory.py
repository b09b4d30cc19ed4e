"""The settings of `metalm_1p3b_small_machine.yaml`, on a tiny model through the real command."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, run, start
from train.__main__ import resolve
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError

EXPERIMENT = Path("configs/experiment/metalm_1p3b_small_machine.yaml")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def _settings(*, precision: str) -> list[str]:
    experiment = yaml.safe_load(EXPERIMENT.read_text())
    assert experiment["optim"]["precision"] == "bf16"
    return [
        "steps=4",
        f"precision={experiment['precision']}",
        f"optim.precision={precision}",
        *(f"{part}={experiment[part]}" for part in ("layout", "zero", "checkpoint")),
        "zero.bucket_elements=2000",  # several updates a step
    ]


def test_bf16_state_and_state_in_files(corpus: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    offload = f"zero.offload_directory={files}"
    in_memory = run(corpus, tmp_path / "memory", *_settings(precision="fp32"))
    in_files = run(corpus, tmp_path / "disk", *_settings(precision="fp32"), offload)
    in_bf16 = run(corpus, tmp_path / "bf16", *_settings(precision="bf16"))
    losses = [record.loss for record in in_memory.train]
    assert len(losses) == 4
    assert [record.loss for record in in_files.train] == losses
    assert [record.gradient_norm for record in in_files.train] == [
        record.gradient_norm for record in in_memory.train
    ]
    assert not list(files.iterdir())
    its_losses = [record.loss for record in in_bf16.train]
    assert its_losses == [pytest.approx(loss, rel=0.02) for loss in losses]
    assert its_losses != losses


def _config(corpus: Path, *overrides: str) -> RunConfig:
    return load(RunConfig, [str(TINY_RUN), f"data.corpus={corpus}", *overrides])


def test_what_cannot_be_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"zero: offload_directory needs stage 3.*stage 1"):
        _config(corpus, "zero.offload_directory=x")
    with pytest.raises(ConfigError, match=r"optim.precision: bf16 is for runs whose parameters"):
        resolve(_config(corpus, "optim.precision=bf16"), ranks=1)
    on_disk = _config(
        corpus, "zero={stage: 3, offload_directory: x}", "checkpoint.asynchronous=false"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"zero.offload_directory: only training on CPUs"):
        resolve(on_disk, ranks=1)
    monkeypatch.undo()
    file = tmp_path / "file"
    file.touch()
    settings = f"zero={{stage: 3, offload_directory: {file}}}"
    finished = start(corpus, tmp_path / "run", settings, "checkpoint.asynchronous=false").wait()
    assert finished.code == 2
    assert f"zero.offload_directory: {file} cannot be used (File exists)" in finished.output
    assert not (tmp_path / "run").exists()
