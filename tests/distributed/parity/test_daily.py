"""Layouts compute what one process computes: loss and gradient norm, three fp32 steps or five.

A few of the cells of `make parity`, which has the whole table.
"""

from dataclasses import replace

import pytest

from tests.distributed.parity.plan import daily_cells
from tests.distributed.parity.results import compared
from tests.distributed.semicausal_runs import (
    CLIP_NORM,
    Cell,
    Items,
    item_parts,
    microbatches,
    oracle,
)
from tools.ranks import RankPool
from train.data.document import MEDIA


def name(cell: Cell) -> str:
    """What tells a cell from the others."""
    parts = [cell.layout, f"zero{cell.zero}", f"micro{cell.microbatches}", cell.spans, cell.norm]
    parts += [cell.recompute] if cell.recompute != "none" else []
    parts += [] if cell.tied else ["untied"]
    parts += ["frozen"] if cell.frozen else []
    parts += ["within"] if cell.attend == "within" else []
    parts += ["compiled"] if cell.compiled else []
    parts += [cell.tuned] if cell.tuned else []
    parts += [f"items-{cell.items}"] if cell.items else []
    parts += ["dealt"] if cell.dealt else []
    parts += [cell.connector] if cell.connector != "linear" else []
    parts += [cell.decoder] if cell.decoder != "ours" else []
    return "-".join(parts).replace(" ", "-")


@pytest.mark.parametrize("cell", daily_cells(), ids=name)
def test_equals_one_process(rank_pools: dict[int, RankPool], cell: Cell) -> None:
    result = compared(rank_pools[cell.ranks], cell, {})
    assert result.status == "run", result.reason
    assert result.fault() is None


def test_attention_within_documents_is_another_thing() -> None:
    """The cells that say so do not pass because everything attends across."""
    (across, _), (within, _) = oracle(Cell()), oracle(Cell(attend="within"))
    assert abs(across[0][0] - within[0][0]) > 1e-3


@pytest.mark.parametrize("items", ["image", "audio", "video", "fused", "all"])
def test_items_are_another_thing(items: Items) -> None:
    """Nor those with items because nothing of these arrives; where there are none, it does."""
    (bare, _), (seen, weights) = (oracle(Cell(items=each, steps=1)) for each in ("", items))
    assert abs(bare[0][0] - seen[0][0]) > 1e-3
    for kind in item_parts(Cell(items=items)):
        assert any(name.startswith(f"encoders.{MEDIA[kind]}.") for name in weights)
    (without, _), (bare, _) = (
        oracle(Cell(items=each, spans="nowhere", steps=1)) for each in (items, "")
    )
    assert without[0][0] == bare[0][0]


def test_a_resampler_is_another_thing() -> None:
    (_, linear), (_, resampled) = (
        oracle(Cell(items="image", connector=each, steps=1))[0][0]
        for each in ("linear", "resampler")
    )
    assert abs(linear - resampled) > 1e-2


def test_oracle_clips_and_learns() -> None:
    """The comparison is worth something: clipping acts, and the loss moves."""
    history, _ = oracle(Cell())
    assert history[0][1] > CLIP_NORM
    assert history[-1][0] < history[0][0]


def test_who_computes_what_is_another_matter() -> None:
    """Dealt samples are the same ones, on other ranks."""
    cell = Cell(pipeline=2, data=2, microbatches=2, items="all", spans="first rank")

    def computed(cell: Cell, rank: int) -> list[list[list[int]]]:
        return [batch.tokens.tolist() for batch in microbatches(cell, 1, rank=rank)]

    dealt, as_made = (
        [computed(replace(cell, dealt=each), rank) for rank in (0, 1)] for each in (True, False)
    )
    flat = [
        sorted(row for of_rank in each for batch in of_rank for row in batch)
        for each in (dealt, as_made)
    ]
    assert flat[0] == flat[1]
    first = [sorted(row for batch in each[0] for row in batch) for each in (dealt, as_made)]
    assert first[0] != first[1]
