"""`make gpu-check` runs from end to end without a GPU, and whatever fails in it is told."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests import warm
from tools.bench.gpu import METALM
from tools.bench.instruments import counting_waits
from tools.gpu_check import __main__ as door
from tools.gpu_check import levers, parity, speed
from tools.gpu_check.__main__ import PARTS, PLUMBING, TINY_REAL, Effort, check, main
from tools.gpu_check.levers import LEVERS
from tools.gpu_check.real_run import RealRunError, Scale, real_run
from tools.gpu_check.report import KEYS, Report
from train.config import RunConfig
from train.config_files import load

ROW = {
    *("case", "levers_off", "sequences", "microbatches", "ms"),
    *("tokens_per_second", "mfu", "gib", "host_ms", "syncs"),
}
CPU = torch.device("cpu")


def test_quick_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "gpu.json"
    status = main(["--quick", "--out", str(out)], context=warm.context())
    said = " ".join(capsys.readouterr().out.split())
    assert status == 0, said
    if not torch.cuda.is_available():
        assert "no CUDA device" in said
        assert all(lever.name in said for lever in LEVERS if lever.lacks() is not None)
    found = json.loads(out.read_text())
    assert list(found) == list(KEYS)
    assert found["resumed_equal"] is True
    assert found["train_tokens_per_second"] > 0
    assert found["matmul_tflops"] > 0
    assert found["copy_tbps"] > 0
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["parity"]) == len(list(parity.ways(is_brief=True)))
    assert all(row["is_equal"] for row in found["parity"]), found["parity"]
    rows: list[dict[str, Any]] = found["rows"]
    assert all(set(row) == ROW and row["ms"] > 0 for row in rows), rows
    assert {tuple(row["levers_off"]) for row in rows if row["case"] == "ablation"} == {
        (lever.name,) for lever in levers.usable()
    }
    parts = [row["ms"] for row in rows if row["case"].startswith("all on: ")]
    assert len(parts) == 3
    page = out.with_suffix(".html").read_text()
    assert found["device"] in page
    assert "went on" in page


def fails(*_: object) -> None:
    raise ValueError("this part is broken")


def dies(*_: object) -> None:
    os._exit(9)


def test_a_part_that_fails_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "machine", fails)
    monkeypatch.setattr(parity, "rows", dies)
    report = Report(tmp_path / "gpu.json")
    context = warm.context()
    parts = ("rates", "parity")
    assert check(PLUMBING, report, Console(), parts=parts, context=context) == 1
    rates, rows = json.loads(report.out.read_text())["rows"]
    assert rates["case"] == "rates, failed: ValueError: this part is broken"
    assert rows["case"].startswith("parity, failed: ")
    assert "exit code 9" in rows["case"]
    assert "raise ValueError" in capsys.readouterr().err
    assert "this part is broken" in report.page.read_text()


def test_what_does_not_fit_the_time_is_listed(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json")
    effort = Effort(minutes=0.01, saves=True)
    started = time.monotonic()
    assert check(effort, report, Console(), parts=PARTS) == 0
    assert time.monotonic() - started < 10, "nothing was started"
    rows = json.loads(report.out.read_text())["rows"]
    assert all("not run: " in row["case"] and row["ms"] is None for row in rows)
    off = [
        name for row in rows if row["case"].startswith("ablation,") for name in row["levers_off"]
    ]
    assert off == [lever.name for lever in levers.usable()]


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "TINY_REAL", replace(TINY_REAL, disk_bytes=10**18))
    report = Report(tmp_path / "gpu.json")
    assert check(PLUMBING, report, Console(), parts=["run"]) == 0
    [row] = report.found["rows"]
    assert row["case"].startswith("run, not run: 1000000000 GB of disk are needed, ")


def test_a_real_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RealRunError, match=r"status 2 too early:\n.*nowhere"):
        real_run(
            Scale(saved=4, repeated=1, sequences=2),
            directory=tmp_path / "made",
            corpus=str(tmp_path / "nowhere"),
            is_tiny=True,
            timeout_seconds=60,
            context=warm.context(),
        )


@pytest.mark.parametrize("files", [METALM, [str(parity.TINY)]], ids=["1.3B", "tiny"])
def test_levers_change_no_number(files: list[str]) -> None:
    """Each may be turned either way while a run goes on, and each way is another configuration."""
    whole = load(RunConfig, files)
    assert len({lever.name for lever in LEVERS}) == len(LEVERS)
    for lever in LEVERS:
        assert lever.off or lever.off_environment
        off = load(RunConfig, [*files, *lever.off])
        assert off.identity() == whole.identity(), lever.name
        assert not lever.off or off != whole, lever.name


def test_parity_can_fail() -> None:
    """Losses of another learning rate are not taken for the CPU's."""
    golden = json.loads(parity.GOLDEN.read_text())
    history = golden["semi-causal, fp32"]
    other = [(loss * (1 + 2e-4 * step), norm) for step, (loss, norm) in enumerate(history)]
    assert parity.differences(history, history) == (0.0, 0.0)
    loss_off, _ = parity.differences(other, history)
    assert loss_off > parity.TOLERANCES["fp32"]
    causal = golden["causal, bf16"]
    loss_off, norm_off = parity.differences(causal, golden["semi-causal, bf16"])
    assert norm_off > parity.NORM_TOLERANCE * parity.TOLERANCES["bf16"]


def test_waits_are_counted() -> None:
    tensor = torch.ones(3)
    with counting_waits(CPU) as waits:
        assert tensor.sum().item() == 3
        assert tensor.tolist() == [1, 1, 1]
        assert bool(tensor[0])
        tensor.to(CPU)
    assert waits.calls == 3
    assert waits.seconds > 0
    tensor.sum().item()
    assert waits.calls == 3, "it has ended"
    assert "item" not in vars(torch.Tensor)
