"""`python -m tools.checkpoint`."""

from pathlib import Path

import pytest
import torch

from tools.checkpoint import main
from train.checkpoint.weights import write_values

CONFIG = {"name": "small", "layout": {"tensor": 2, "pipeline": 1}, "zero": {"stage": 3}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run" / "checkpoints"
    for step in (10, 20, 30):
        values = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2).bfloat16()}
        write_values(directory / f"step_{step:08d}", values, {"step": step, "config": CONFIG})
    (directory / "latest").write_text("step_00000030\n")
    return directory.parent


def test_inspect(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (run, run / "checkpoints", run / "checkpoints" / "step_00000030"):
        assert main(["inspect", str(place)]) == 0
        shown = capsys.readouterr().out
        assert "step: 30\n" in shown
        assert "config: small\n" in shown
        assert "layout: tensor=2 pipeline=1 zero=3\n" in shown
        assert "parameters: 8\n" in shown
        (weight,) = (line for line in shown.splitlines() if "weight" in line)
        assert "[2, 3] float32" in weight
        assert "24" in weight
        (bias,) = (line for line in shown.splitlines() if "bias" in line)
        assert "bfloat16" in bias
    assert main(["inspect", str(run.parent)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_verify_names_every_fault(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "step_00000030"
    assert main(["verify", str(run)]) == 0
    assert f"{path}: whole" in capsys.readouterr().out
    file = path / "chunks-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # in the bias, whose type is narrower
    data[-5] ^= 1  # in the weight
    file.write_bytes(data)
    (path / "state.json").write_text("{}")
    assert main(["verify", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "state.json is damaged: it has 2 bytes" in shown
    assert "of weight differs from the index" in shown
    assert "of bias differs from the index" in shown
    assert f"{path}: 3 fault(s)" in shown
    (path / "index.json").write_text("{")
    assert main(["verify", str(path)]) == 1
    assert "index.json is damaged" in capsys.readouterr().out


def test_prune(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = run / "checkpoints"

    def names() -> list[str]:
        return sorted(path.name for path in directory.iterdir() if path.is_dir())

    assert main(["prune", str(run), "--keep", "1", "--dry-run"]) == 0
    assert "removed step_00000020" not in capsys.readouterr().out
    assert names() == ["step_00000010", "step_00000020", "step_00000030"]
    assert main(["prune", str(run), "--keep", "1", "--keep-every-steps", "20"]) == 0
    assert "removed step_00000010\nkept step_00000020\nkept step_00000030\n" in (
        capsys.readouterr().out
    )
    assert names() == ["step_00000020", "step_00000030"]
    assert main(["prune", str(directory), "--keep", "1"]) == 0
    assert names() == ["step_00000030"], "never the newest"
    assert main(["prune", str(directory / "step_00000030"), "--keep", "1"]) == 2
    assert "holds no checkpoints: name a run directory" in capsys.readouterr().err
    assert main(["prune", str(run), "--keep", "0"]) == 2
