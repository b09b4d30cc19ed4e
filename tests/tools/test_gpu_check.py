"""`make gpu-check` runs from end to end without a GPU, and whatever fails in it is told."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests import warm
from tools.bench.gpu import METALM, Measured, Subject
from tools.bench.instruments import counting_waits
from tools.gpu_check import __main__ as door
from tools.gpu_check import levers, parity, speed
from tools.gpu_check.__main__ import PARTS, PLUMBING, TINY_REAL, Effort, check, main
from tools.gpu_check.levers import LEVERS
from tools.gpu_check.real_run import RealRunError, Scale, real_run
from tools.gpu_check.report import Report
from tools.gpu_check.speed import Case
from tools.gpu_check.targets import more_operations, targets
from tools.ranks import RankPool, RanksFailed
from train.config import RunConfig
from train.config_files import load

ROW = {
    *("case", "levers_off", "sequences", "microbatches", "ms"),
    *("tokens_per_second", "mfu", "gib", "host_ms", "syncs"),
}
KEYS = {
    *("device", "versions", "matmul_tflops", "copy_tbps", "parity", "rows"),
    *("train_tokens_per_second", "resumed_equal", "targets"),
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
    assert set(found) == KEYS
    assert {row["what"] for row in found["targets"] if row["found"] is None} == {
        "launch to first step, compiling, s",
        "launch to first step, compiled before, s",
    }, "of the real size alone"
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


def test_what_does_not_fit_the_time_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for of, name in ((RankPool, "run"), (door, "real_run")):
        monkeypatch.setattr(of, name, lambda *_, **__: pytest.fail("something was started"))
    report = Report(tmp_path / "gpu.json")
    effort = Effort(minutes=0.01, saves=True)
    assert check(effort, report, Console(), parts=PARTS) == 0
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
    why = r"train \(killed\) ended with status 2 before its first step; it said:\n.*nowhere"
    with pytest.raises(RealRunError, match=why):
        real_run(
            Scale(saved=4, repeated=1, sequences=2),
            directory=tmp_path / "made",
            corpus=str(tmp_path / "nowhere"),
            is_tiny=True,
            timeout_seconds=60,
            context=warm.context(),
        )


def lacking(case: Case, most: int, *arguments: Any) -> Any:
    """Rows on a device that has memory for so many sequences."""
    measure = Subject.measure

    def measured(self: Subject, *, sequences: int, **options: Any) -> Measured:
        if sequences > most:
            raise torch.OutOfMemoryError
        return measure(self, sequences=sequences, **options)

    Subject.measure = measured
    try:
        return speed.rows(case, *arguments)
    finally:
        Subject.measure = measure


def test_what_does_not_fit_is_tried_smaller() -> None:
    case = Case(name="all on", sequences=8, microbatches=(1, 2), steps=1)
    with RankPool(1, context=warm.context()) as pool:
        [(rows, _)] = pool.run(lacking, case, 2, True, 1e12)
        assert [(row["sequences"], row["microbatches"]) for row in rows] == [(2, 1), (2, 2)]
        with pytest.raises(RanksFailed, match="OutOfMemoryError"):
            pool.run(lacking, case, 0, True, 1e12)


def test_sizes_begin_where_they_usually_fit() -> None:
    case = Case(name="all on")
    assert case.sizes(140 * 2**30) == [16, 12, 8, 4, 2, 1]
    assert case.sizes(79 * 2**30) == [12, 8, 4, 2, 1]
    assert case.sizes(0) == [1]
    assert replace(case, sequences=8).sizes(79 * 2**30) == [8, 4, 2, 1]


def found_on_an_h100(**changes: float) -> dict[str, Any]:
    """What stands in gpu.json of a device that is just as fast as is asked."""
    base, just = 500.0, 1 - 1e-9
    ms = {
        "all on": base,
        "all on, fp8": base / 1.2 * just,
        "all on, causal": base / more_operations(METALM) / 1.05 / just,
        "all on, documents apart": base,
        "all on, ZeRO-3": base * 1.1 * just,
    }
    one = {"levers_off": [], "sequences": 12, "microbatches": 1}
    rows: list[dict[str, Any]] = [{**one, "case": "all on", "ms": 1.0, "levers_off": ["x"]}]
    for case, expected in ms.items():
        taken = expected * changes.get(case, 1)
        tokens_per_second = 12 * 2048 / taken * 1000
        rows.append({**one, "case": case, "ms": taken, "tokens_per_second": tokens_per_second})
    rows.append({**one, "case": "all on", "microbatches": 4, "ms": 1900.0, "mfu": 0.53})
    return {
        "device": "NVIDIA H100 80GB HBM3",
        "rows": rows,
        "train_tokens_per_second": 0.99 * 12 * 2048 / base * 1000,
    }


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, set()),
        ({"all on, fp8": 1.01}, {"fp8 over bf16, tokens/s"}),
        ({"all on, ZeRO-3": 1.01}, {"ZeRO-3 over ZeRO-1, time"}),
        ({"all on, documents apart": 1.01}, {"documents apart over together, time"}),
        ({"all on, causal": 0.99}, {"semi-causal over causal, time, over their operations"}),
    ],
)
def test_each_target_is_told(changes: dict[str, float], missed: set[str]) -> None:
    rows = targets(found_on_an_h100(**changes), [59, 26], files=METALM)
    late = "launch to first step, compiled before, s"
    assert {row["what"] for row in rows if row["is_met"] is False} == {late} | missed
    assert all(row["is_met"] is not None for row in rows)
    assert next(row for row in rows if row["what"] == "MFU, all on")["found"] == 0.53


def test_unequal_steps_are_not_compared() -> None:
    found = found_on_an_h100()
    for row in found["rows"]:
        row["sequences"] = 8 if row["case"] == "all on, fp8" else 12
    [fp8] = [row for row in targets(found, [], files=METALM) if "fp8" in row["what"]]
    assert (fp8["found"], fp8["is_met"]) == (None, None)


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
