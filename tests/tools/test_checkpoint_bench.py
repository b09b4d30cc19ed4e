"""The comparison of checkpoints runs, and reports every ratio with what is asked of it."""

import json
from pathlib import Path

import pytest

from tools.bench.__main__ import main
from tools.bench.report import BARS, MEANINGS


@pytest.mark.timeout(180)
def test_checkpoints_are_compared(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["--tiny", "--only", "checkpoint", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    keys = {key for key in MEANINGS if key.startswith("checkpoint_")}
    assert set(found["ratios"]) == keys
    assert {key for key in BARS if key.startswith("checkpoint_")} <= keys
    assert all(value > 0 for value in found["ratios"].values())
    seconds = found["cases"]["checkpoint"]["settings"]["seconds"]
    assert {"copy", "blocked", "write", "read", "dd_write", "dd_read"} <= set(seconds)


@pytest.mark.timeout(180)
@pytest.mark.long
def test_own_disks_are_compared_with_a_store(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["--tiny", "--only", "local_disks", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    keys = {"restore_local_vs_s3", "restore_copies_vs_s3"}
    keys |= {"local_save_vs_step", "local_save_every_step"}
    assert set(found["ratios"]) == keys <= MEANINGS.keys()
    assert all(value > 0 for value in found["ratios"].values())
