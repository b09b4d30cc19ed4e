"""What lies on each disk after many starts, most of which were killed: bounded, whatever came."""

import signal
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import kill_at, start, wait_for_step
from train.exit_status import ExitStatus

STARTS = 4


def listed(directory: Path) -> list[str]:
    """All files and directories, but for what has a name of one start."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_lies_on_disks_does_not_grow_with_starts(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    temporary, disk, run = tmp_path / "tmp", tmp_path / "disk", tmp_path / "run"
    temporary.mkdir()
    options = (
        *("steps=100000", "checkpoint.every_steps=4", "checkpoint.keep=2"),
        *("validation.every_steps=100000", "watch.wandb=offline"),
        f"checkpoint.local={{directory: {disk}, every_steps: 1, copies: 0}}",
    )
    environment = {"TMPDIR": str(temporary), "WANDB_MODE": "offline"}
    counts: list[tuple[int, int, int]] = []
    for number in range(1, STARTS + 1):
        attempt = start(corpus, run, *options, environment=environment)
        if number == STARTS:
            wait_for_step(attempt, run, step=6 * number)
            attempt.signal(signal.SIGUSR1)
            assert attempt.wait().code == ExitStatus.SAVED
        else:
            kill_at(attempt, run, step=6 * number)
        steps = len(list(disk.glob("*/step_*"))), len(list((run / "checkpoints").glob("step_*")))
        counts.append((*steps, len(listed(temporary))))
    for local, stored, left in counts:
        # One more of each may have been under way.
        assert local <= 2, counts
        assert stored <= 4, counts
        assert left <= 3, (counts, listed(temporary))
    assert counts[-1] == (1, 2, counts[-1][2]), counts
    assert len(list(disk.iterdir())) == 1
    # What a start that is killed leaves beside the run's own files, the next one has removed.
    assert [name for name in listed(run) if name.endswith(("wandb-media", "wandb-artifacts"))] == []
    assert [name for name in listed(run) if ".tmp-" in name] == []
