"""What hardware does, as far as this machine tells."""

import json
import time
from pathlib import Path

import pytest

from train.watch import hardware
from train.watch.hardware import GpuUse, Hardware, HardwareUse, gpu_use


def test_a_node_s_file_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "LOOK_SECONDS", 0.1)
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    began = time.monotonic()
    watch = Hardware(tmp_path / "hardware")
    path = tmp_path / "hardware/node7.jsonl"
    deadline = began + 60
    while not (path.exists() and path.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watch.stop()
    for line in path.read_text().splitlines():
        use = HardwareUse.model_validate_json(line, strict=True)
        assert use.node == "node7"
        assert 0 <= use.processor_fraction <= 1
        assert 0 < use.memory_fraction < 1
        assert 0.09 < use.seconds < time.monotonic() - began
        assert json.loads(line)["memory_bytes"] > 0


def test_what_a_driver_does_not_tell_is_none() -> None:
    assert gpu_use("97, 40960, 61, 350.25") == GpuUse(
        busy_fraction=0.97, memory_bytes=40960 * 2**20, celsius=61.0, watts=350.25
    )
    assert gpu_use("[N/A], 12, [Not Supported], 5") == GpuUse(
        busy_fraction=None, memory_bytes=12 * 2**20, celsius=None, watts=5.0
    )
