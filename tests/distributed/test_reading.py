"""Generation by the live model on ranks, against one process: the same tokens, on every rank."""

from typing import Any

import numpy as np
import pytest
import torch

from model.batch import PackedSpans
from model.generation.decoding import Request, generate
from model.generation.picking import Sampling
from model.generation.scoring import score
from model.reading import Read
from model.semicausal import SemiCausal
from parallel.forward import FrozenEngine
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from parallel.reading import reader
from tests.distributed.semicausal_runs import (
    SLOTS,
    Cell,
    History,
    build,
    engine_of,
    run_steps,
)
from tools.ranks import RankPool
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text

CELLS = [
    Cell(tensor=2),
    Cell(tensor=2, sequence_parallel=True, norm="pre"),
    Cell(pipeline=2),
    Cell(pipeline=2, chunks=2, microbatches=2, tied=False),
    Cell(data=2, zero=3),
    Cell(data=2, zero=2, norm="pre"),
]
LARGER = [
    Cell(tensor=2, pipeline=2, sequence_parallel=True, zero=1),
    Cell(tensor=2, data=2, zero=3, norm="pre"),
    Cell(pipeline=2, chunks=2, microbatches=2, data=2, zero=3),
]

LENGTHS = (9, 20, 1, 14)
SPANS = ([(1, 5)], [(2, 8), (15, 20)], [], [(3, 6)])
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=2.0, top_p=0.9, seed=5),
    Sampling(temperature=2.0, top_p=1.0, top_k=9, seed=6),
    Sampling(),
)
STEPS_BEFORE, STEPS_AFTER = range(2), range(2, 4)

Told = tuple[list[tuple[list[int], list[float]]], list[list[float]]]


def prompts() -> tuple[list[list[int]], dict[str, PackedSpans]]:
    random = np.random.default_rng(11)
    tokens = np.zeros((len(LENGTHS), max(LENGTHS)), dtype=np.int64)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = random.integers(4, 97, length)
    packed = pack_text(
        tokens,
        FlatSpans.of([np.array(some, dtype=np.int64).reshape(-1, 2) for some in SPANS]),
        capacity=SpanCapacity(tokens=0, spans=0, longest_tokens=23),
        start_token=0,
    )
    pairs = zip(tokens.tolist(), LENGTHS, strict=True)
    return [row[:length] for row, length in pairs], {"text": packed}


def told_by(read: Read, *, is_live: bool = False) -> Told:
    """Tokens and their log-probabilities behind prompts; and those of given continuations."""
    tokens, spans = prompts()
    options: dict[str, Any] = {"device": torch.device("cpu"), "spans": spans}
    requests = [
        Request(max_new_tokens=count, sampling=sampling, num_top=0)
        for count, sampling in zip((6, 9, 4, 60), SAMPLINGS, strict=True)
    ]
    rows = generate(read, tokens, requests, most_slots=SLOTS, is_live=is_live, **options)
    found = [(row.ids, [token.log_probability for token in row.tokens]) for row in rows]
    scored = score(read, tokens, [[[5, 6, 7], [8]], [[9]], [], [[3, 4]]], **options)
    return found, [[t.log_probability for t in some] for choices in scored for some in choices]


def trained_then_told(cell: Cell) -> tuple[Told, History]:
    """What the live model says between steps; and the steps, which must not notice."""
    engine = engine_of(cell)
    assert isinstance(engine.module, SemiCausal)
    history = run_steps(engine, cell, STEPS_BEFORE)
    with engine.evaluating():
        found = told_by(reader(engine), is_live=True)
        again = told_by(reader(engine), is_live=True)
        assert found == again
        with pytest.raises(AssertionError, match="it is live"):
            told_by(reader(engine))
        if cell.zero < 3:  # nothing is gathered: as a model that is not trained would be read
            frozen = FrozenEngine(module=engine.module, mesh=engine.mesh)
            assert told_by(reader(frozen)) == found
    history += run_steps(engine, cell, STEPS_AFTER)
    engine.close()
    return found, history


def in_one_process(cell: Cell) -> tuple[Told, History]:
    """The same, by a whole model in one process that is trained by torch alone."""
    from tests.distributed.semicausal_runs import microbatches, plain_steps

    alone = cell.alone()
    model = build(alone, build_mesh(LayoutConfig(), World.here(torch.device("cpu"))))
    assert isinstance(model, SemiCausal)
    history = plain_steps(model, (microbatches(alone, step)[0] for step in STEPS_BEFORE))
    found = told_by(model.eval())
    return found, history


def compare(cell: Cell, pool: RankPool) -> None:
    (wanted, scores), before = in_one_process(cell)
    answers = pool.run(trained_then_told, cell)
    for (found, scored), history in answers:
        assert [ids for ids, _ in found] == [ids for ids, _ in wanted]
        for (_, chances), (_, expected) in zip(found, wanted, strict=True):
            assert chances == pytest.approx(expected, abs=2e-5)
        for chances, expected in zip(scored, scores, strict=True):
            assert chances == pytest.approx(expected, abs=2e-5)
        for step, (loss, norm) in enumerate(before):
            assert history[step] == pytest.approx((loss, norm), rel=1e-4)
    assert all(answer == answers[0] for answer in answers), "ranks disagree"
    assert [len(ids) for ids, _ in wanted] == [6, 9, 4, SLOTS + 1 - 14]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.layout}-zero{cell.zero}")
def test_two_ranks(cell: Cell, rank_pools: dict[int, RankPool]) -> None:
    compare(cell, rank_pools[2])


@pytest.mark.long
@pytest.mark.parametrize("cell", LARGER, ids=lambda cell: f"{cell.layout}-zero{cell.zero}")
def test_four_ranks(cell: Cell, rank_pools: dict[int, RankPool]) -> None:
    compare(cell, rank_pools[4])


def steps_with_and_without(cell: Cell) -> tuple[History, History]:
    histories: list[History] = []
    for speaks in (True, False):
        engine = engine_of(cell)
        history = run_steps(engine, cell, STEPS_BEFORE)
        if speaks:
            with engine.evaluating():
                told_by(reader(engine), is_live=True)
        histories.append(history + run_steps(engine, cell, STEPS_AFTER))
        engine.close()
    return histories[0], histories[1]


@pytest.mark.parametrize(
    "cell", [Cell(data=2, zero=3), Cell(pipeline=2)], ids=lambda cell: f"{cell.layout}"
)
def test_training_does_not_notice(cell: Cell, rank_pools: dict[int, RankPool]) -> None:
    for spoke, silent in rank_pools[2].run(steps_with_and_without, cell):
        assert spoke == silent
