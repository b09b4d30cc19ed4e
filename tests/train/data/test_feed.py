"""Global batches do not depend on ranks, microbatches or restarts, in content and order."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import Batch
from tests.corpora import write_corpus, write_documents
from train.data.collate import Collator, SpanCapacity
from train.data.corpus import Corpus
from train.data.feed import Feed
from train.data.mixture import Mixture, SourceConfig, shares
from train.data.plan import Plan, identities
from train.data.sources import Laying, Source, Sources
from train.data.spans import RandomSpansConfig, build_policy
from train.data.tokens import SpecialTokens
from train.errors import DataError

S = 64
STEPS = 7
SLOTS = 8


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    root = tmp_path_factory.mktemp("corpora")
    write_documents(root / "long", mean_tokens=50, seed=1)
    write_documents(root / "short", mean_tokens=12, seed=2, with_spans=True)
    write_corpus(root / "cut", sequence_tokens=S, train=30, seed=3)
    return [Corpus(str(root / name)) for name in ("long", "short", "cut")]


def plan_of(
    corpora: list[Corpus],
    *,
    weights: list[float],
    window: int = 40,
    seed: int = 5,
    layouts: int = 1,
    steps: int = STEPS,
    **laying: Any,
) -> Plan:
    at = Laying(sequence_tokens=S, window=window, seed=seed, **laying)
    names = [f"source{number}" for number in range(len(weights))]
    sources = [Source(n, i, corpora[i], at) for i, n in enumerate(names)]
    mixed = {n: SourceConfig(corpus="x", weight=w) for n, w in zip(names, weights, strict=True)}
    rows = SLOTS // layouts
    mixture = Mixture(shares(mixed, {}, steps=steps, rows=rows), rows=rows, seed=seed)
    return Plan(Sources(sources), mixture, slots=SLOTS, layouts=layouts)


def collator(seed: int = 5) -> Collator:
    spans = RandomSpansConfig(ratio=0.25)
    return Collator(
        sequence_tokens=S,
        policies={"text": build_policy(spans, seed=seed, special=SpecialTokens())},
        capacities={"text": SpanCapacity(tokens=40, spans=12, longest_tokens=S)},
        start_tokens={"text": 0},
        padding=3,
    )


def rows_of(batches: list[Batch]) -> list[tuple[torch.Tensor, ...]]:
    """What each sequence of a step is, whatever the microbatch it came in."""
    found: list[tuple[torch.Tensor, ...]] = []
    for batch in batches:
        for row in range(len(batch.tokens)):
            spans = batch.spans["text"]
            slots = spans.slots[: spans.num_vectors]
            mine = (slots >= row * S) & (slots < (row + 1) * S)
            found.append((batch.tokens[row], batch.labels[row], slots[mine] - row * S))
    return found


def read(
    plan: Plan, *, first: int, last: int, ranks: int, micro: int
) -> dict[int, list[tuple[torch.Tensor, ...]]]:
    """Steps first + 1, ..., last, all ranks' parts in rank order."""
    steps: dict[int, list[tuple[torch.Tensor, ...]]] = {}
    for rank in range(ranks):
        feed = Feed(
            plan,
            collator(),
            micro_sequences=micro,
            rank=rank,
            ranks=ranks,
            timeout_seconds=30,
            last_step=last,
        )
        with feed:
            for step in range(first + 1, last + 1):
                data = feed.step(step)
                assert data.first == len(steps.setdefault(step, []))
                steps[step] += rows_of(data.batches)
    return steps


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_ranks_and_resume_points_change_nothing(corpora: list[Corpus], data: st.DataObject) -> None:
    settings_of_run: dict[str, Any] = {
        "weights": data.draw(st.lists(st.floats(0.1, 1), min_size=1, max_size=3)),
        "window": data.draw(st.integers(5, 150)),
        "seed": data.draw(st.integers(0, 99)),
        "layouts": data.draw(st.sampled_from([1, 2])),
    }
    whole = read(plan_of(corpora, **settings_of_run), first=0, last=STEPS, ranks=1, micro=SLOTS)
    stops = sorted(data.draw(st.sets(st.integers(1, STEPS - 1), max_size=3)))
    position: dict[str, Any] | None = None
    for first, last in zip([0, *stops], [*stops, STEPS], strict=True):
        # A new process: nothing is known but what a checkpoint keeps, or not even that.
        plan = plan_of(corpora, **settings_of_run)
        if position is not None and data.draw(st.booleans()):
            plan.start_at(position, step=first)
        ranks = data.draw(st.sampled_from([1, 2, 4]))
        micro = data.draw(st.sampled_from([1, 2]))
        part = read(plan, first=first, last=last, ranks=ranks, micro=micro)
        for step, rows in part.items():
            assert len(rows) == SLOTS
            for mine, theirs in zip(rows, whole[step], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), step
        position = plan.position(last)


def test_every_document_is_read_once_an_epoch(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0], window=50, steps=60)
    rows = plan.sources.all[0].rows
    taken: dict[int, dict[int, list[tuple[int, int]]]] = {}
    number = first_of_epoch = epoch_before = 0
    while (row := rows.row(number)).epoch < 3:
        if row.epoch != epoch_before:
            first_of_epoch, epoch_before = number, row.epoch
        assert row.number == number - first_of_epoch, "it seeds the row's spans"
        for document, begin, end in row.pieces.tolist():
            taken.setdefault(row.epoch, {}).setdefault(document, []).append((begin, end))
        number += 1
    store = corpora[0].train
    lengths = np.concatenate([store.lengths(shard) for shard in range(len(store.shard_sizes))])
    assert list(taken) == [0, 1, 2]
    for epoch in taken.values():
        assert sorted(epoch) == list(range(len(store)))
        for document, ranges in epoch.items():
            covered = [t for begin, end in sorted(ranges) for t in range(begin, end)]
            assert covered == list(range(lengths[document, 0]))
    assert taken[0] != taken[1]


def test_a_row_holds_what_its_documents_hold(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0, 1.0])
    for step in range(1, STEPS + 1):
        for slot in plan.step(step):
            sample = slot.source.read(slot.row)
            assert sample.tokens[0] == 0
            assert sample.documents is not None
            assert sample.scored is not None
            at = 1
            for (number, begin, end), (start, stop) in zip(
                slot.row.pieces.tolist(), sample.documents.tolist(), strict=True
            ):
                stored = slot.source.corpus.train.columns(number)
                assert (start, stop) == (at, at + end - begin)
                assert sample.tokens[start:stop].tolist() == stored["tokens"][begin:end].tolist()
                at = stop
            assert at == len(sample.tokens) <= S + 1


def test_stored_spans_and_scores_move_with_their_documents(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[0.0, 1.0], span_tokens=40, spans=6)
    seen = 0
    for slot in plan.step(1):
        sample = slot.source.read(slot.row)
        assert sample.spans is not None
        assert sample.scored is not None
        assert sample.documents is not None
        for start, stop in sample.spans.tolist():
            owner = [(a, b) for a, b in sample.documents.tolist() if a <= start < b]
            assert owner
            assert start == owner[0][0]
            assert stop - start == (owner[0][1] - owner[0][0]) // 2
            assert not sample.scored[start:stop].any()
            assert sample.scored[stop : owner[0][1]].all()
            seen += 1
    assert seen > SLOTS


def test_documents_apart_each_begin_with_their_own_start(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0, 1.0], attend="within")
    for slot in plan.step(2):
        sample = slot.source.read(slot.row)
        assert sample.documents is not None
        assert sample.scored is not None
        assert len(sample.tokens) <= S + 1
        assert sample.documents[0, 0] == 0
        assert sample.documents[-1, 1] == len(sample.tokens)
        starts = sample.documents[:, 0]
        assert (sample.tokens[starts] == 0).all()
        assert not sample.scored[starts].any()
    with pytest.raises(DataError, match="within is for documents"):
        plan_of(corpora, weights=[1.0, 1.0, 1.0], attend="within")


def test_layouts_hold_the_same_documents_with_other_spans(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0], layouts=2)
    with Feed(
        plan, collator(), micro_sequences=2, rank=0, ranks=1, timeout_seconds=30, last_step=1
    ) as feed:
        batches = feed.step(1).batches
    for batch in batches:
        assert torch.equal(batch.tokens[0], batch.tokens[1])
    different = [not torch.equal(batch.labels[0], batch.labels[1]) for batch in batches]
    assert sum(different) >= len(different) - 1
    assert not torch.equal(batches[0].tokens, batches[1].tokens)


def test_a_position_of_another_mixture_is_refused(corpora: list[Corpus]) -> None:
    position = plan_of(corpora, weights=[1.0, 1.0]).position(3)
    with pytest.raises(DataError, match=r"has read \[12, 12\] rows .* says \[18, 6\]"):
        plan_of(corpora, weights=[3.0, 1.0]).start_at(position, step=3)


def test_what_was_read_is_listed(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0, 1.0, 1.0])
    with Feed(
        plan, collator(), micro_sequences=2, rank=1, ranks=2, timeout_seconds=30, last_step=2
    ) as feed:
        data = feed.step(2)
    assert (data.first, data.rows) == (4, 4)
    np.testing.assert_array_equal(
        data.identities, identities(plan.step(2))[-len(data.identities) :]
    )
    assert set(data.identities[:, 0].tolist()) == {4, 5, 6, 7}


def test_damage_surfaces_in_the_step_that_needs_the_shard(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "corpus")
    plan = plan_of([Corpus(str(root))], weights=[1.0])
    for shard in (root / "train").glob("*.mds"):
        shard.write_bytes(shard.read_bytes()[:-1])
    with Feed(
        plan, collator(), micro_sequences=2, rank=0, ranks=1, timeout_seconds=30, last_step=2
    ) as feed:
        error = feed.try_step(1)
    assert isinstance(error, DataError)
    assert "bytes where the index says" in str(error)


def test_media_are_refused_until_an_encoder_reads_them(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "corpus", media=True)
    with pytest.raises(DataError, match="120 image spans, which no encoder"):
        plan_of([Corpus(str(root))], weights=[1.0])


def test_batches_have_one_shape(corpora: list[Corpus]) -> None:
    plan = plan_of(corpora, weights=[1.0, 1.0, 1.0])
    shapes: set[tuple[torch.Size, ...]] = set()
    with Feed(
        plan, collator(), micro_sequences=2, rank=0, ranks=1, timeout_seconds=30, last_step=STEPS
    ) as feed:
        for step in range(1, STEPS + 1):
            for batch in feed.step(step).batches:
                tensors = [getattr(batch, field.name) for field in fields(batch)]
                tensors += [
                    getattr(batch.spans["text"], f.name) for f in fields(batch.spans["text"])
                ]
                shapes.add(tuple(t.shape for t in tensors if isinstance(t, torch.Tensor)))
    assert len(shapes) == 1
