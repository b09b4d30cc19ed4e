"""How the head computes its loss is the machine's matter; a run may go on with another way."""

from pathlib import Path

import pytest
import torch

from tests.train.runs import TINY_RUN
from train.__main__ import resolve, say_what_the_head_lacks
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError


def config(*overrides: str) -> RunConfig:
    return load(RunConfig, [str(TINY_RUN), "data.corpus=nowhere", *overrides])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_without_a_gpu_is_refused_with_all_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as error:
        resolve(config("model.decoder.loss_kernel=triton", "optim.precision=bf16"), ranks=1)
    assert str(error.value).splitlines() == [
        "model.decoder.loss_kernel: triton does not work here (there is no GPU): set auto or torch",
        "optim.precision: bf16 is for runs whose parameters are bf16 too: set precision=bf16, "
        "or leave optim.precision out",
    ]


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_without_a_gpu_nothing_is_missed(kernel: str, capsys: pytest.CaptureFixture[str]) -> None:
    say_what_the_head_lacks(resolve(config(f"model.decoder.loss_kernel={kernel}"), ranks=1))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_without_triton_is_told_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails: here it is torch, which is built without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    say_what_the_head_lacks(config())
    assert capsys.readouterr().err == (
        "note: model.decoder.loss_kernel: torch, for triton does not work here: "
        "Torch not compiled with CUDA enabled\n"
    )
    with pytest.raises(ConfigError, match=r"loss_kernel: triton does not work here \(Torch not"):
        resolve(config("model.decoder.loss_kernel=triton"), ranks=1)


@pytest.mark.parametrize(
    "change",
    ["loss_kernel=torch", "loss_chunk_tokens=4096", "loss_chunk_tokens=null"],
)
def test_a_run_may_go_on_with_another(change: str) -> None:
    assert config(f"model.decoder.{change}").identity() == config().identity()


def test_every_file_of_a_model_leaves_it_to_the_machine() -> None:
    for path in Path("configs").rglob("*.yaml"):
        assert "loss_chunk" not in path.read_text()
