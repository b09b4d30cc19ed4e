"""What steps of a real model do on a GPU: they wait no more than on a CPU, and a run goes on."""

from pathlib import Path

import torch

from tools.gpu_check import levers, speed
from tools.gpu_check.__main__ import TINY_REAL
from tools.gpu_check.real_run import real_run
from tools.gpu_check.speed import Case
from tools.ranks import RankPool


def measured(*off: str) -> dict[str, float]:
    case = Case(name="row", off=off, sequences=4, steps=3)
    with RankPool(1, cuda=True) as pool:
        [([row], _)] = pool.run(speed.rows, case, True, None, timeout_seconds=300)
    return row


def test_steps_run_with_all_levers_and_with_none() -> None:
    everything = [lever.name for lever in levers.usable()]
    assert measured(*everything)["ms"] > 0
    found = measured()
    assert found["ms"] > 0
    assert found["syncs"] <= 1, "the host waits once a step, for the one before"


def test_a_run_is_killed_goes_on_and_stops(tmp_path: Path) -> None:
    found = real_run(TINY_REAL, directory=tmp_path, corpus=None, is_tiny=True, timeout_seconds=300)
    assert found.resumed_equal


def test_rates_are_those_of_a_gpu() -> None:
    with RankPool(1, cuda=True) as pool:
        [found] = pool.run(speed.machine, False, timeout_seconds=120)
    assert found["device"] == torch.cuda.get_device_name()
    assert found["matmul_tflops"] > 20
    assert found["copy_tbps"] > 0.2
