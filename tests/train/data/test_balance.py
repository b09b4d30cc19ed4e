"""The order of a global batch against every order that there is, and what items cost by loops."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.connector import LinearConnectorConfig
from model.decoder import DecoderConfig
from model.encoders.image import ImageEncoderConfig
from model.semicausal import EncoderConfig, ModelConfig
from parallel.costs import item_cost
from tests import pictures
from train.data.balance import balanced, spaced
from train.data.corpus import Corpus
from train.data.document import Document, Kind
from train.data.feed import Feed
from train.data.mixture import Mixture, SourceConfig, shares
from train.data.pack import Room
from train.data.plan import StepPlan, identities
from train.data.sources import Laying, Source, Sources

S = 96
ENTRIES = 8


def parts_of(order: list[int], costs: list[int], parts: int) -> list[int]:
    """What each of so many equal runs of the order costs."""
    share = len(order) // parts
    return [
        sum(costs[place] for place in order[first : first + share])
        for first in range(0, len(order), share)
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4), st.data())
def test_halves_against_all_that_there_are(few: list[int], data: st.DataObject) -> None:
    costs = [
        *few, *data.draw(st.lists(st.integers(0, 1000), min_size=len(few), max_size=len(few)))
    ]  # fmt: skip
    order = balanced(costs)
    assert sorted(order) == list(range(len(costs)))
    total = sum(costs)
    best = min(
        max(mine, total - mine)
        for chosen in combinations(costs, len(few))
        for mine in [sum(chosen)]
    )
    found = parts_of(order, costs, 2)
    assert max(found) <= 4 / 3 * best
    assert found == sorted(found, reverse=True), "costlier parts come first"


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 48).flatmap(
        lambda size: st.lists(st.integers(0, 10**15), min_size=size, max_size=size)
    )
)
def test_the_order_is_one_of_the_places_and_knows_costs_alone(costs: list[int]) -> None:
    order = balanced(costs)
    assert sorted(order) == list(range(len(costs)))
    assert order == balanced(costs)
    assert order == balanced([3 * cost for cost in costs])


@pytest.mark.parametrize("size", [1, 2, 7, 12, 64])
def test_equal_costs_change_nothing(size: int) -> None:
    assert balanced([5] * size) == list(range(size))


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_one_order_suits_any_number_of_ranks(ranks: int, micro: int) -> None:
    """Half of the sequences have nothing, others differ by an order of magnitude."""
    random = np.random.default_rng(0)
    worst: defaultdict[str, float] = defaultdict(float)
    for _ in range(40):
        costs = [int(c) for c in random.lognormal(7, 1, 64) * (random.random(64) < 0.5)]
        for name, order in (("dealt", balanced(costs)), ("mixed", list(range(64)))):
            worst[name] += max(parts_of(order, costs, ranks)) / (sum(costs) / ranks)
            parts = parts_of(order, costs, 64 // micro)
            each = np.array(parts).reshape(ranks, -1).max(axis=0).sum()
            worst[f"{name} at once"] += each / (sum(costs) / ranks)
    if ranks == 1:
        assert worst["dealt"] == pytest.approx(40)
        return
    assert worst["dealt"] < 40 * (1.4 if ranks == 8 else 1.1)
    assert worst["dealt"] - 40 < (worst["mixed"] - 40) / 2
    assert worst["dealt at once"] < worst["mixed at once"]


def waited(costs: Sequence[int], stages: int) -> float:
    """How long the first stage takes where the others take the mean, one backward at a time.

    It does the backward of one microbatch, two thirds, and the forward of that `stages` later.
    """
    mean = sum(costs) / len(costs)
    pairs = zip(costs, costs[stages:], strict=False)
    return sum(max(mean, (2 * before + behind) / 3) for before, behind in pairs)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**9), max_size=40), st.integers(1, 5))
def test_microbatches_are_computed_once_each(costs: list[int], stages: int) -> None:
    order = spaced(costs, stages=stages)
    assert sorted(order) == list(range(len(costs)))
    if stages == 1:
        assert [costs[place] for place in order] == sorted(costs, reverse=True)
    if len(set(costs)) == 1:
        assert order == list(range(len(costs)))


@pytest.mark.parametrize("stages", [2, 4])
def test_costly_microbatches_are_followed_by_cheap_ones(stages: int) -> None:
    random = np.random.default_rng(0)
    found = as_dealt = as_drawn = 0.0
    for _ in range(50):
        drawn = [int(c) for c in random.uniform(300, 1000, 32) * (random.random(32) < 0.5)]
        dealt = [drawn[place] for place in balanced(drawn)]
        as_drawn += waited(drawn, stages)
        as_dealt += waited(dealt, stages)
        found += waited([dealt[place] for place in spaced(dealt, stages=stages)], stages)
    assert found < 0.93 * as_drawn
    assert found < 0.85 * as_dealt


ENCODER = ImageEncoderConfig(
    kind="image", width=16, num_layers=2, heads=2, feed_forward=32, patch_pixels=8, max_patches=16
)
MODEL = ModelConfig(
    decoder=DecoderConfig(
        vocabulary=300, width=32, num_layers=1, heads=2, feed_forward=64, max_tokens=S
    ),
    encoders={
        "image": EncoderConfig(encoder=ENCODER, connector=LinearConnectorConfig(kind="linear"))
    },
)


def cost_by_hand(vectors: int) -> int:
    """Twice two products a block for each of its four weights, and all pairs of rows twice."""
    E, F, H, n = 16, 32, 32, vectors
    block = 2 * n * (3 * E * E + E * E + 2 * E * F) + 2 * 2 * n * n * E
    return 3 * (2 * block + 2 * n * E * H)


@pytest.mark.parametrize("vectors", [1, 5, 16])
def test_an_item_costs_what_its_operations_are(vectors: int) -> None:
    assert item_cost(MODEL, "image", vectors) == cost_by_hand(vectors)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("skewed")
    rows = [*pictures.interleaved(60), *pictures.albums(12, each=7), *pictures.colours(4, plain=60)]
    return Corpus(str(pictures.build(root / "corpus", rows)))


def plan_of(corpus: Corpus, *, is_balanced: bool, choices: int = 1) -> StepPlan:
    room = Room(kind=Kind.IMAGE, spans=6, slots=64, vectors=ENCODER.item_vectors, cost=cost_by_hand)
    laying = Laying(sequence_tokens=S, window=50, rooms=(room,))
    source = Source("only", 0, corpus, laying)
    share, sequences = {"only": SourceConfig(corpus="x")}, ENTRIES // choices
    mixture = Mixture(shares(share, {}, steps=9, sequences=sequences), sequences=sequences, seed=0)
    return StepPlan(
        Sources([source]), mixture, entries=ENTRIES, choices=choices, is_balanced=is_balanced
    )


def held(plan: StepPlan, step: int, **part: int) -> list[tuple[Any, ...]]:
    return [
        (entry.sequence.epoch, entry.sequence.number, entry.choice)
        for entry in plan.step(step, **part)
    ]


def test_sequences_cost_what_their_items_do(corpus: Corpus) -> None:
    """Of whole documents and of those that are cut; an epoch costs what all items do."""
    plan = plan_of(corpus, is_balanced=True)
    sequences = plan.sources.all[0].sequences
    number = total = parts_of_albums = 0
    while (planned := sequences.sequence(number)).epoch == 0:
        sample = plan.sources.all[0].read(planned)
        assert planned.cost == sum(cost_by_hand(item.stop - item.start) for item in sample.items)
        whole = planned.parts[:, 2] - planned.parts[:, 1] == planned.lengths
        parts_of_albums += bool(sample.items) and not whole.all()
        total += planned.cost
        number += 1
    assert parts_of_albums
    store = corpus.train
    items = [
        item
        for document in range(len(store))
        for item in Document.from_columns(store.columns(document)).items()
    ]
    assert total == sum(cost_by_hand(ENCODER.item_vectors(item.size)) for item in items) > 0


@pytest.mark.parametrize("choices", [1, 2])
def test_a_step_holds_the_same_sequences_in_another_order(corpus: Corpus, choices: int) -> None:
    plan, mixed = (plan_of(corpus, is_balanced=each, choices=choices) for each in (True, False))
    again = plan_of(corpus, is_balanced=True, choices=choices)
    worst = worst_mixed = 0
    for step in (1, 2, 3, 4, 5):
        dealt = held(plan, step)
        assert sorted(dealt) == sorted(held(mixed, step))
        assert [entry.number for entry in plan.step(step)] == list(range(ENTRIES))
        # Whatever part is asked for, and by whom.
        assert held(again, step, first=2, stop=6) == dealt[2:6]
        costs = [entry.sequence.cost for entry in plan.step(step)]
        in_order = list(range(ENTRIES))
        worst += max(parts_of(in_order, costs, 2))
        costs = [entry.sequence.cost for entry in mixed.step(step)]
        worst_mixed += max(parts_of(in_order, costs, 2))
    assert worst < worst_mixed
    late = plan_of(corpus, is_balanced=True, choices=choices)
    late.start_at(plan.position(5), step=5)
    assert held(late, 6) == held(plan, 6)


def test_a_rank_computes_its_microbatches_in_another_order_and_notes_them_in_that_of_the_plan(
    corpus: Corpus,
) -> None:
    plan = plan_of(corpus, is_balanced=True)

    def collate(pairs: Any, **_: Any) -> Any:
        return [(epoch, sample.id) for epoch, sample in pairs]

    for stages in (1, 2):
        with Feed(
            plan,
            collate,  # pyright: ignore[reportArgumentType]  # which samples it is given
            micro_sequences=1,
            rank=1,
            ranks=2,
            timeout_seconds=30,
            last_step=3,
            stages=stages,
        ) as feed:
            for step in (1, 2, 3):
                mine = plan.step(step, first=4)
                data = feed.step(step)
                np.testing.assert_array_equal(data.identities, identities(mine))
                costs = [entry.sequence.cost for entry in mine]
                held = [(entry.sequence.epoch, entry.sequence.number) for entry in mine]
                order = spaced(costs, stages=stages)
                assert data.batches == [[held[place]] for place in order]


def test_a_corpus_of_text_is_as_it_was(tmp_path: Path) -> None:
    root = pictures.build(tmp_path / "text", pictures.colours(0, plain=60))
    plan, mixed = (plan_of(Corpus(str(root)), is_balanced=each) for each in (True, False))
    for step in (1, 2):
        assert held(plan, step) == held(mixed, step)
