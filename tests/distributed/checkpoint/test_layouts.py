"""What any layout has written, every other continues: the first loss is that of no interruption."""

from pathlib import Path

import pytest

from tests.distributed.semicausal_runs import Cell, History, engine_of, run_steps
from tools.ranks import RankPool
from train.checkpoint.directory import Retention
from train.checkpoint.restore import restore
from train.checkpoint.saver import Saver

NUM_STEPS = 3
TOLERANCE = 1e-5

CELLS = (
    Cell(zero=0),
    Cell(data=2, zero=3),
    Cell(tensor=2, sequence_parallel=True, zero=1),
    Cell(pipeline=2, zero=2, microbatches=2),
    Cell(pipeline=2, chunks=2, zero=3, microbatches=2),
    Cell(tensor=2, pipeline=2, zero=3, microbatches=2),
    Cell(tensor=2, data=2, zero=2),
)
"""Seven layouts with every ZeRO stage, on one, two and four ranks."""


def _write(cell: Cell, directory: Path) -> History:
    """Trains, saves, and trains one step more; that step's loss and norm."""
    engine = engine_of(cell)
    run_steps(engine, cell, range(NUM_STEPS))
    retention = Retention(keep=1)
    with Saver(directory, retention=retention) as saver:
        saver.save(engine, {"config": {}}, step=NUM_STEPS)
        saver.finish()
    next_step = run_steps(engine, cell, [NUM_STEPS])
    engine.close()
    return next_step


def _continue(cell: Cell, directories: list[Path]) -> list[History]:
    """The next step from each checkpoint; all of the one before must be overwritten."""
    engine = engine_of(cell)
    histories: list[History] = []
    for directory in directories:
        state = restore(directory, engine)
        assert (state.step, state.optimizer_steps) == (NUM_STEPS, NUM_STEPS)
        histories.append(run_steps(engine, cell, [NUM_STEPS]))
    engine.close()
    return histories


@pytest.mark.long
def test_every_layout_continues_every_other(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    directories = [tmp_path / str(number) for number in range(len(CELLS))]
    uninterrupted = [
        rank_pools[cell.ranks].run(_write, cell, directory)[0]
        for cell, directory in zip(CELLS, directories, strict=True)
    ]
    for reader in CELLS:
        continued = rank_pools[reader.ranks].run(_continue, reader, directories)[0]
        for writer, found, expected in zip(CELLS, continued, uninterrupted, strict=True):
            if writer == reader:
                assert found == expected, f"{reader} continues itself"
            assert found == [pytest.approx(expected[0], rel=TOLERANCE)], (writer, reader)
