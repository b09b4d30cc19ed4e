"""Who is where in a mesh, and what of the model each rank holds."""

import math
import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.layers import initialize, logical_name, placement
from model.loss import Loss
from model.semicausal import SemiCausal
from parallel.mesh import straddling_warning
from parallel.pipeline import forward
from parallel.split import with_split
from parallel.zero.state import local_slices
from tests.distributed.parity.results import differences
from tests.distributed.semicausal_runs import (
    Cell,
    Part,
    assembled,
    build,
    engine_of,
    mesh_of,
    microbatches,
    model_config,
    on_ranks,
    run_steps,
)
from tools.ranks import RankPool

LAYOUTS = [
    Cell(tensor=2, data=2),
    Cell(pipeline=2, data=2),
    Cell(tensor=2, pipeline=2),
    Cell(pipeline=4),
    Cell(tensor=4),
]

Place = tuple[int, int, int]


def _place(cell: Cell) -> tuple[Place, Place, dict[str, list[int]]]:
    """Ranks and sizes of (tensor, pipeline, data), and the ranks of each group."""
    mesh = mesh_of(cell)
    groups = {
        "tensor": mesh.tensor_group,
        "data": mesh.data_group,
        "model": mesh.model_group,
        "ends": mesh.ends_group,
    }
    members = {name: dist.get_process_group_ranks(group) for name, group in groups.items() if group}
    ranks = (mesh.tensor_rank, mesh.pipeline_rank, mesh.data_rank)
    return ranks, (mesh.tensor_size, mesh.pipeline_size, mesh.data_size), members


@pytest.mark.parametrize("cell", LAYOUTS, ids=lambda cell: cell.layout)
def test_tensor_runs_fastest_then_pipeline_then_data(
    rank_pools: dict[int, RankPool], cell: Cell
) -> None:
    places = rank_pools[4].run(_place, cell)
    sizes = (cell.tensor, cell.pipeline, cell.data)
    wanted = [
        (tensor, stage, data)
        for data in range(cell.data)
        for stage in range(cell.pipeline)
        for tensor in range(cell.tensor)
    ]
    assert [ranks for ranks, _, _ in places] == wanted
    for ranks, its_sizes, groups in places:
        assert its_sizes == sizes

        def alike(*dims: int, place: Place = ranks) -> list[int]:
            """Ranks at the same place but for these dims."""
            fixed = [dim for dim in range(3) if dim not in dims]
            return [i for i, w in enumerate(wanted) if all(w[dim] == place[dim] for dim in fixed)]

        assert groups["data"] == alike(2)
        assert groups["model"] == alike(0, 1)
        assert groups.get("tensor") == (alike(0) if cell.tensor > 1 else None)
        is_end = cell.pipeline > 1 and ranks[1] in (0, cell.pipeline - 1)
        first_and_last = [alike(1)[0], alike(1)[-1]]
        assert groups.get("ends") == (first_and_last if is_end else None)


def _first_weights(cell: Cell) -> tuple[dict[str, tuple[tuple[int, ...], Tensor]], int]:
    """Box and value of each parameter, padding cut off, and the elements that this rank holds."""
    model = build(cell, mesh_of(cell))
    found: dict[str, tuple[tuple[int, ...], Tensor]] = {}
    for name, parameter in model.named_parameters():
        place = placement(parameter)
        rows = place.box[0][1] - place.box[0][0]
        assert not parameter[rows:].any(), "padding rows"
        shape = parameter[:rows].shape
        assert shape == tuple(stop - start for start, stop in place.box)
        bounds = tuple(bound for pair in place.box for bound in pair)
        found[logical_name(name, parameter)] = (bounds, parameter.detach()[:rows].clone())
    return found, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "cell", [*LAYOUTS[:4], Cell(pipeline=2, chunks=2, data=2)], ids=lambda cell: cell.layout
)
def test_first_weights_are_those_of_the_whole_model_and_tile_it(
    rank_pools: dict[int, RankPool], cell: Cell, tied: bool
) -> None:
    cell = replace(cell, tied=tied, norm="pre")
    whole = SemiCausal(model_config(cell))
    initialize(whole, seed=3)
    expected = {name: p.detach() for name, p in whole.named_parameters()}
    answers = rank_pools[4].run(_first_weights, cell)
    boxes: dict[str, set[tuple[int, ...]]] = {}
    for held, _ in answers:
        for name, (bounds, value) in held.items():
            pairs = zip(bounds[::2], bounds[1::2], strict=True)
            assert torch.equal(value, expected[name][tuple(slice(a, b) for a, b in pairs)]), name
            boxes.setdefault(name, set()).add(bounds)
    assert set(boxes) == set(expected)
    for name, its_boxes in boxes.items():
        # Boxes are equal or disjoint, so their sizes add up to the whole.
        count = torch.zeros(expected[name].shape, dtype=torch.int64)
        for bounds in its_boxes:
            pairs = zip(bounds[::2], bounds[1::2], strict=True)
            count[tuple(slice(a, b) for a, b in pairs)] += 1
        assert bool((count == 1).all()), name


@pytest.mark.parametrize("cell", LAYOUTS[:4], ids=lambda cell: cell.layout)
def test_parameters_of_each_rank(rank_pools: dict[int, RankPool], cell: Cell) -> None:
    """By hand: shapes of the tiny model, divided as the layout says."""
    width, hidden, vocabulary, slim = 32, 64, 97, 16
    T = cell.tensor
    padded = math.ceil(vocabulary / (128 * T)) * 128 if T > 1 else vocabulary

    def block(width: int, hidden: int) -> int:
        columns = (3 * width * (width + 1) + hidden * (width + 1)) // T
        rows = (width * width + width * hidden) // T + 2 * width
        return columns + rows + 4 * width

    encoder = padded * slim + 24 * slim + 2 * slim + 32 * 2 + 2 * block(slim, 32)
    connector = slim * width + width
    spread = with_split(cell.spread(), model_config(cell), sequence_tokens=48, span_share=0.25)
    split = spread.split
    assert split is not None
    for rank, (_, num_elements) in enumerate(rank_pools[4].run(_first_weights, cell)):
        stage = rank // T % cell.pipeline
        expected = split[stage] * block(width, hidden)
        if stage == 0:
            expected += padded * width + encoder + connector
        if stage == cell.pipeline - 1 and cell.pipeline > 1:
            expected += padded * width
        assert num_elements == expected, rank


def _train_with_dropout(cell: Cell) -> tuple[list[Part], list[Part]]:
    """Owned parts, and copies of the rest, after steps with dropout."""
    engine = engine_of(cell)
    run_steps(engine, cell, range(3))
    owned: list[Part] = []
    copies: list[Part] = []
    for part in local_slices(engine):
        if part.kind == "value":
            entry = (part.name, part.region, part.tensor.clone())
            (owned if part.owned else copies).append(entry)
    engine.close()
    return owned, copies


@pytest.mark.parametrize("zero", [1, 3])
@pytest.mark.parametrize(
    "cell",
    [
        Cell(tensor=2, pipeline=2),
        Cell(tensor=2, sequence_parallel=True, data=2),
        Cell(tensor=2, sequence_parallel=True, pipeline=2, recompute="full"),
    ],
    ids=lambda cell: cell.layout,
)
def test_copies_stay_equal_under_dropout(
    rank_pools: dict[int, RankPool], cell: Cell, zero: int
) -> None:
    cell = replace(cell, zero=zero, dropout=0.2, microbatches=2)
    answers = rank_pools[4].run(_train_with_dropout, cell)
    whole = assembled([owned for owned, _ in answers])
    num_copies = 0
    for name, region, value in (part for _, parts in answers for part in parts):
        assert whole[name].shape == region.shape
        box = whole[name][tuple(slice(*bounds) for bounds in region.box)].flatten()
        assert torch.equal(value, box[region.start : region.stop]), name
        num_copies += 1
    assert num_copies > 0


@pytest.mark.parametrize(
    "cell",
    # Not of stages: what is computed again changes how the layers are split over them.
    [Cell(tensor=2), Cell(tensor=2, sequence_parallel=True)],
    ids=lambda cell: cell.layout,
)
def test_recomputation_drops_the_same(rank_pools: dict[int, RankPool], cell: Cell) -> None:
    cell = replace(cell, dropout=0.2, microbatches=2)
    kept, *others = (
        rank_pools[2].run(on_ranks, replace(cell, recompute=recompute))[0]
        for recompute in ("none", "selective", "full")
    )
    for other in others:
        assert max(differences(other, kept)) < 1e-5
    without = rank_pools[2].run(on_ranks, replace(cell, dropout=0.0))[0]
    assert max(differences(without, kept)) > 1e-3, "dropout acts"


def _evaluated(cell: Cell) -> list[tuple[float, list[float]]]:
    """Losses of three batches, of the first two, and of the first alone."""
    engine = engine_of(cell)
    batches = [batch for step in range(3) for batch in microbatches(cell, step)]
    losses: list[tuple[float, list[float]]] = []
    with engine.evaluating():
        for count in (3, 2, 1):
            for loss in forward(engine, batches[:count]):
                losses.append((loss.total.item(), loss.terms.tolist()))
    engine.close()
    return losses


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize(
    "cell",
    [
        Cell(tensor=2, sequence_parallel=True),
        Cell(pipeline=2),
        Cell(pipeline=2, chunks=2),
    ],
    ids=lambda cell: cell.layout,
)
def test_evaluation_takes_any_number_of_batches(
    rank_pools: dict[int, RankPool], cell: Cell, zero: int
) -> None:
    model = SemiCausal(model_config(cell)).eval()
    initialize(model, seed=3)
    expected: list[float] = []
    for count in (3, 2, 1):
        for step in range(count):
            (batch,) = microbatches(cell, step)
            with torch.no_grad():
                loss = model(batch)
            assert isinstance(loss, Loss)
            expected.append(loss.total.item())
    first, last = rank_pools[2].run(_evaluated, replace(cell, zero=zero))
    assert [total for total, _ in last] == pytest.approx(expected, rel=1e-5)
    assert [sum(terms) for _, terms in last] == pytest.approx(expected, rel=1e-5)
    assert first == (last if cell.pipeline == 1 else []), "losses are on the last stage"


def _warning_on(nodes: list[str]) -> str | None:
    mesh = mesh_of(Cell(tensor=2))
    os.environ["SLURMD_NODENAME"] = nodes[dist.get_rank()]
    try:
        return straddling_warning(mesh)
    finally:
        del os.environ["SLURMD_NODENAME"]


def test_a_tensor_group_over_two_nodes_is_warned_about(rank_pools: dict[int, RankPool]) -> None:
    assert rank_pools[2].run(_warning_on, ["a1", "a1"]) == [None, None]
    for warning in rank_pools[2].run(_warning_on, ["a2", "a1"]):
        assert warning == (
            "layout.tensor: a group of 2 ranks straddles the nodes a1, a2: every layer will wait "
            "for the network between them; use a degree that divides the ranks of a node"
        )
    assert rank_pools[2].run(_no_tensor_group) == [None, None]


def _no_tensor_group() -> str | None:
    return straddling_warning(mesh_of(Cell(pipeline=2)))
