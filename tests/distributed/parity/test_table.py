"""The table of `make parity` has every pair of choices; it fails when a cell does or is missing."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from model.region import Region
from tests.distributed.parity import __main__ as parity
from tests.distributed.parity.pairs import all_pairs, pairs_of, pairwise
from tests.distributed.parity.plan import (
    EIGHT_RANKS,
    MICROBATCHES,
    RECOMPUTE,
    SPANS,
    ZERO,
    daily_cells,
    planned_cells,
)
from tests.distributed.parity.results import (
    Result,
    differences,
    largest_weight_difference,
    problems,
)
from tests.distributed.semicausal_runs import Cell, assembled, oracle

LAYOUTS = ("tp2", "tp2+sp", "pp2", "pp4", "tp2·dp2", "pp2·dp2", "tp2·pp2", "tp2·pp2·dp2", "pp2x2")

CHOICES: dict[str, Sequence[Any]] = {
    "zero": ZERO, "microbatches": MICROBATCHES, "spans": SPANS, "recompute": RECOMPUTE
}  # fmt: skip


def choices_of(cell: Cell, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in names}


def covered(cells: Sequence[Cell], factors: Mapping[str, Sequence[Any]]) -> bool:
    found = {pair for cell in cells for pair in pairs_of(choices_of(cell, factors))}
    return all_pairs(factors) <= found


def test_pairwise_covers_every_pair_in_few_rows() -> None:
    factors: dict[str, Sequence[Any]] = {"a": "xyz", "b": (1, 2, 3), "c": (True, False), "d": "pqr"}
    rows = pairwise(factors)
    # Brute force: any two factors together take every value they can.
    for first, second in [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]:
        assert {(row[first], row[second]) for row in rows} == set(
            product(factors[first], factors[second])
        )
    assert len(rows) < 54 / 4
    assert rows == pairwise(factors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_every_pair_of_choices(layout: str) -> None:
    cells = [
        cell
        for cell in planned_cells()
        if cell.layout == layout and cell.precision == "fp32" and not cell.dropout
    ]
    factors = dict(CHOICES)
    if layout == "pp2x2":
        factors["microbatches"] = MICROBATCHES[1:]
        assert {c.zero for c in cells if c.microbatches == 1 and c.fault()} == set(ZERO)
        cells = [cell for cell in cells if not cell.fault()]
    assert covered(cells, factors)
    assert not any(cell.fault() for cell in cells)


def test_eight_ranks_have_the_full_product() -> None:
    cells = [cell for cell in planned_cells() if choices_of(cell, EIGHT_RANKS) == EIGHT_RANKS]
    plain = {cell for cell in cells if not cell.sequence_parallel and cell.tied}
    planned = {tuple(choices_of(cell, CHOICES).values()) for cell in plain}
    assert planned >= set(product(ZERO, MICROBATCHES, SPANS, ("none", "full")))


@pytest.mark.parametrize(
    "wanted",
    [
        {"sequence_parallel": True, "zero": 3, "data": 2},
        {"tied": True, "pipeline": 2},
        {"tied": False, "pipeline": 2},
        {"tied": False, "pipeline": 4},
        *({"frozen": True, "zero": zero, "pipeline": 2} for zero in ZERO),
        *({"frozen": True, "zero": zero, "tensor": 2} for zero in ZERO),
        {"norm": "pre", "tensor": 2, "sequence_parallel": True},
        *({"precision": "bf16", "zero": zero, "tensor": 2, "pipeline": 2} for zero in ZERO),
        {"dropout": 0.1, "tensor": 2, "sequence_parallel": True},
        {"chunks": 2, "zero": 3, "data": 2},
        {"attend": "within", "tensor": 2, "sequence_parallel": True, "pipeline": 2, "zero": 3},
        {"attend": "within", "chunks": 2, "data": 2, "recompute": "selective"},
        {"attend": "within", "tensor": 2, "pipeline": 2, "data": 2},
        *({"items": "image", "zero": zero, "spans": spans} for zero in ZERO for spans in SPANS),
        *({"items": "image", "zero": zero, "frozen": True} for zero in ZERO),
        {"items": "image", "tensor": 2, "sequence_parallel": True, "data": 2, "zero": 3},
        {"items": "image", "tensor": 2, "pipeline": 2, "data": 2, "steps": 20},
        {"items": "image", "compiled": "aot_eager", "zero": 3, "spans": "first rank"},
        *(
            {"items": items, key: value}
            for items in ("all", "audio", "video", "divided")
            for key, values in (("zero", (0, 1, 3)), ("spans", SPANS), ("frozen", (True, False)))
            for value in values
        ),
        {"items": "all", "tensor": 2, "pipeline": 2, "data": 2, "steps": 20},
        *({"dealt": True, "zero": zero, "data": 2, "spans": "first rank"} for zero in (0, 1, 3)),
        {"dealt": True, "pipeline": 2, "data": 2},
        {"items": "all", "precision": "bf16", "zero": 3, "spans": "first rank"},
        {"steps": 20, "tensor": 2, "pipeline": 2, "zero": 3},
        {"steps": 20, "tensor": 2, "pipeline": 2, "data": 2, "zero": 3},
    ],
    ids=lambda wanted: ",".join(f"{name}={value}" for name, value in wanted.items()),
)
def test_further_choices_are_planned(wanted: dict[str, Any]) -> None:
    assert any(choices_of(cell, wanted) == wanted for cell in planned_cells())


def test_daily_cells_have_every_pair_too() -> None:
    cells = daily_cells()
    assert max(cell.ranks for cell in cells) == 4
    assert not any(cell.fault() for cell in cells)
    for layout in {cell.layout for cell in cells} - {"one"}:
        assert covered(
            [c for c in cells if c.layout == layout], {"zero": ZERO, "norm": ("deepnorm",)}
        )
    factors: dict[str, Sequence[Any]] = {
        "zero": ZERO,
        "microbatches": (2, 4),
        "spans": ("everywhere", "first rank"),
        "recompute": ("none", "full"),
        "tied": (True, False),
        "frozen": (False, True),
    }
    assert covered(cells, factors)
    whole = {(c.ranks, c.zero, c.microbatches, c.spans) for c in cells if c.data == c.ranks == 2}
    assert whole >= set(product([2], ZERO, [1, 4], ["everywhere"]))
    assert whole >= set(product([2], ZERO, [2], ["first rank"]))


def test_interleaving_is_refused_with_the_reason() -> None:
    refused = [cell for cell in planned_cells() if cell.fault()]
    assert Counter(cell.layout for cell in refused) == {"pp2x2": len(ZERO)}
    assert {cell.microbatches for cell in refused} == {1}
    for cell in refused:
        fault = cell.fault()
        assert fault is not None
        assert (
            "needs a multiple of layout.pipeline (2) microbatches a step and there are 1" in fault
        )


def run(cell: Cell, *, loss: float = 1e-8, norm: float = 1e-8, **options: Any) -> Result:
    return Result(
        cell=cell, status="run", loss_difference=loss, gradient_norm_difference=norm, **options
    )


def test_a_cell_fails_beyond_its_tolerance() -> None:
    cell = Cell(tensor=2)
    assert run(cell).fault() is None
    assert run(cell, loss=1e-5).fault() is None
    for worse in (1.1e-5, math.inf, math.nan):
        assert "loss differs" in str(run(cell, loss=worse).fault())
        assert "gradient_norm differs" in str(run(cell, norm=worse).fault())
        assert "weight differs" in str(run(cell, weight_difference=10 * worse).fault())
    in_bf16 = replace(cell, precision="bf16")
    assert run(in_bf16, loss=1e-4, norm=1e-2).fault() is None
    assert run(in_bf16, loss=1e-3).fault()
    assert run(in_bf16, norm=0.1).fault()
    assert run(replace(cell, dropout=0.1)).fault(), "the same run again must be equal bit for bit"
    assert Result(cell=cell, status="failed", reason="spilled milk").fault() == (
        "failed: spilled milk"
    )


def test_a_nan_is_no_small_difference() -> None:
    history = [(1.0, 2.0), (1.0, 2.0)]
    assert differences(history, history) == (0.0, 0.0)
    for bad in (math.nan, math.inf):
        assert differences([(1.0, 2.0), (bad, 2.0)], history) == (math.inf, 0.0)
        assert differences([(1.0, bad), (1.0, 2.0)], history) == (0.0, math.inf)


def test_a_planned_cell_that_was_not_run_is_a_problem() -> None:
    planned = [Cell(tensor=2), Cell(pipeline=2)]
    assert problems(planned, [run(cell) for cell in planned]) == []
    (problem,) = problems(planned, [run(planned[0])])
    assert "1 planned cells were not run" in problem
    assert "pipeline=2" in problem


def command(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *arguments: str,
    change: Callable[[Result], Result] = lambda result: result,
) -> tuple[int, list[dict[str, Any]]]:
    """`make parity` over two cells of one rank and one of two."""
    planned = [Cell(), Cell(recompute="full"), Cell(pipeline=2, chunks=2)]
    monkeypatch.setattr(parity, "planned_cells", lambda: planned)
    original = parity.compared
    monkeypatch.setattr(parity, "compared", lambda *given: change(original(*given)))
    out = tmp_path / "out" / "parity.json"
    code = parity.main([*arguments, "--out", str(out)])
    return code, json.loads(out.read_text())


def test_command_writes_rows_and_succeeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = command(monkeypatch, tmp_path)
    assert code == 0
    assert [row["status"] for row in rows] == ["run", "run", "refused"]
    first, _, refused = rows
    wanted = {
        "layout": "one", "zero": 0, "microbatches": 1, "spans": "everywhere", "recompute": "none"
    }  # fmt: skip
    assert first.items() >= wanted.items()
    assert 0 <= first["loss_difference"] <= 1e-5
    assert 0 <= first["gradient_norm_difference"] <= 1e-5
    assert first["reason"] is None
    assert refused["loss_difference"] is None
    assert "needs a multiple of layout.pipeline" in refused["reason"]
    shown = capsys.readouterr().out
    assert "pp2x2" in shown
    assert "refused: layout.chunks" in shown


def test_command_fails_when_a_planned_cell_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = command(monkeypatch, tmp_path, "--layout", "pp2x2")
    assert code == 1
    assert len(rows) == 1
    assert "2 planned cells were not run" in capsys.readouterr().out


def test_command_fails_when_a_cell_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def worse(result: Result) -> Result:
        return replace(result, gradient_norm_difference=1e-3) if result.status == "run" else result

    code, rows = command(monkeypatch, tmp_path, change=worse)
    assert code == 1
    assert rows[0]["gradient_norm_difference"] == 1e-3
    assert "gradient_norm differs by 1.0e-03 of 1.0e-05 allowed" in capsys.readouterr().out


def test_key_biases_alone_are_excepted_from_trained_weights() -> None:
    _, weights = oracle(Cell())
    name = "decoder.blocks.0.attention.qkv.bias"
    assert largest_weight_difference(weights, weights) == 0
    for part, is_excepted in enumerate((False, True, False)):
        other = {key: weight.clone() for key, weight in weights.items()}
        other[name].view(4, 3, -1)[:, part] += 1.0
        assert (largest_weight_difference(other, weights) == 0) is is_excepted


def test_assembling_notices_what_is_missing_or_there_twice() -> None:
    left, right = (
        Region(shape=(3, 4), box=((0, 3), columns), start=0, stop=6) for columns in ((0, 2), (2, 4))
    )
    halves = [
        ("w", left, torch.arange(6.0)),
        ("w", right.cut(0, 5), torch.arange(5.0)),
        ("w", right.cut(5, 6), torch.full((1,), 9.0)),
    ]
    whole = assembled([halves[:1], halves[1:]])["w"]
    assert whole.tolist() == [[0, 1, 0, 1], [2, 3, 2, 3], [4, 5, 4, 9]]
    with pytest.raises(AssertionError, match="tiled"):
        assembled([halves[:2]])
    with pytest.raises(AssertionError, match="tiled"):
        assembled([halves, halves[:1]])
