"""What a user reads when a checkpoint cannot be written."""

from pathlib import Path

import pytest

from parallel.agreement import on_all_ranks
from train.checkpoint import saver as checkpoint_saver
from train.checkpoint.directory import Retention
from train.checkpoint.saver import Saver
from train.errors import CheckpointError, StorageError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (StorageError("Could not write it: check the store"), "Could not write it: check the stor"),
    ],
)
def test_a_disk_or_store_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str
) -> None:
    monkeypatch.setattr(checkpoint_saver.dist, "new_group", lambda **_: None)

    def fail() -> None:
        raise error

    saver = Saver(tmp_path, retention=Retention(keep=1))
    place = saver._directory / "step_00000001"
    told = rf"^{place} cannot be written \({reason}.*\); the checkpoints before it are whole$"
    with pytest.raises(CheckpointError, match=told):
        saver._agreed(on_all_ranks, place, fail)
