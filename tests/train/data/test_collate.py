"""Microbatches against straightforward loops over their samples."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import UNSCORED, Batch
from tests.model.examples import text_spans
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.given import FixedSpansConfig, StoredSpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.scoring import scored_tokens
from train.data.spans.text import TextReader, TextSpansConfig
from train.errors import DataError

S = 20
START, PADDING = 6, 3

Range = tuple[int, int]


def sample_of(
    spans: list[Range] | None,
    *,
    id: int = 0,
    num_tokens: int = S + 1,
    scored: list[bool] | None = None,
) -> Sample:
    random = np.random.default_rng(id)
    return Sample(
        id=id,
        tokens=random.integers(10, 90, size=num_tokens),
        spans=None if spans is None else np.array(spans, dtype=np.int64).reshape(-1, 2),
        scored=None if scored is None else np.array(scored),
    )


STORED = StoredSpansConfig(kind="stored")


def reader(
    kind: TextSpansConfig = STORED, *, tokens: int = 16, spans: int = 8, longest: int = 12
) -> TextReader:
    capacity = SpanCapacity(tokens=tokens, spans=spans, longest_tokens=longest)
    return TextReader(kind=kind, capacity=capacity, start_token=START)


def collator(*, tokens: int = 16, spans: int = 8, longest: int = 12) -> Collator:
    return Collator(
        sequence_tokens=S,
        readers={"text": reader(tokens=tokens, spans=spans, longest=longest)},
        padding=PADDING,
    )


def equation_one(num_tokens: int, spans: list[Range]) -> set[int]:
    """Eq. 1 of MetaLM, literally: t = e_i .. s_{i+1}, e_0 = 1, s_{k+1} = n, x_0 = `<s>`."""
    found: set[int] = set()
    end = 1
    for start, stop in [*spans, (num_tokens - 1, num_tokens)]:
        t = end
        while t <= start:
            found.add(t)
            t += 1
        end = stop
    return found


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, list[Range]]:
    """A number of tokens, and spans among their slots: adjacent, single, at the end, or none."""
    num_tokens = draw(st.integers(2, S + 1))
    places = range(1, num_tokens)
    cuts = sorted(draw(st.sets(st.sampled_from(places), max_size=8)))
    pairs = list(pairwise(cuts))
    keep = draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    return num_tokens, [pair for pair, kept in zip(pairs, keep, strict=True) if kept]


@settings(deadline=None)
@given(layout=layouts())
def test_targets_are_those_of_equation_one(layout: tuple[int, list[Range]]):
    num_tokens, spans = layout
    sample = sample_of(None, num_tokens=num_tokens)
    found = scored_tokens(sample, np.array(spans, dtype=np.int64).reshape(-1, 2))
    assert set(np.flatnonzero(found).tolist()) == equation_one(num_tokens, spans)


def test_the_example_of_the_paper():
    """Fig. 3d: `<s> a [b c] d e f [g h i] j k` predicts a, b, -, d, e, f, g, -, -, j, k, l."""
    letters = ["<s>", *"abcdefghijkl"]
    sample = Sample(id=0, tokens=np.arange(len(letters)))
    scored = scored_tokens(sample, np.array([[2, 4], [7, 10]]))
    assert [x for x, wanted in zip(letters, scored, strict=True) if wanted] == list("abdefgjkl")


def test_a_task_may_score_fewer_tokens():
    scored = [i % 2 == 1 for i in range(S + 1)]
    sample = sample_of([(3, 8)], scored=scored)
    assert sample.spans is not None
    found = set(np.flatnonzero(scored_tokens(sample, sample.spans)).tolist())
    assert found == {t for t in equation_one(S + 1, [(3, 8)]) if t % 2 == 1}


def by_loops(samples: list[Sample]) -> dict[str, Any]:
    """What a microbatch must hold, written as loops."""
    tokens: list[list[int]] = []
    labels: list[list[int]] = []
    scored: list[int] = []
    first: list[bool] = []
    rows: list[int] = []
    positions: list[int] = []
    cells: list[int] = []
    vectors: list[int] = []
    slots: list[int] = []
    everything = [
        (row, int(a), int(b))
        for row, sample in enumerate(samples)
        for a, b in ([] if sample.spans is None else sample.spans)
    ]
    longest = max((b - a + 1 for _, a, b in everything), default=2)
    for row, sample in enumerate(samples):
        x = sample.tokens.tolist()
        ranges = [] if sample.spans is None else [(int(a), int(b)) for a, b in sample.spans]
        targets = equation_one(len(x), ranges)
        tokens.append([x[t] if t < len(x) else PADDING for t in range(S)])
        labels.append([x[t + 1] if t + 1 in targets else UNSCORED for t in range(S)])
        for t in range(1, S + 1):
            if t in targets:
                scored.append(row * S + t - 1)
                first.append(t in {start for start, _ in ranges})
    for number, (row, start, stop) in enumerate(everything):
        for place in range(stop - start + 1):
            if place > 0:
                vectors.append(len(rows))
                slots.append(row * S + start + place - 1)
            rows.append(START if place == 0 else int(samples[row].tokens[start + place - 1]))
            positions.append(place)
            cells.append(number * longest + place)
    return {
        "tokens": tokens,
        "labels": labels,
        "scored": scored,
        "first": first,
        "rows": rows,
        "positions": positions,
        "cells": cells,
        "vectors": vectors,
        "slots": slots,
        "num_spans": len(everything),
        "longest": longest,
    }


def assert_equals_loops(batch: Batch, samples: list[Sample]) -> None:
    wanted = by_loops(samples)
    assert batch.tokens.tolist() == wanted["tokens"]
    assert batch.labels.tolist() == wanted["labels"]
    assert batch.num_scored == len(wanted["scored"])
    assert batch.scored[: batch.num_scored].tolist() == wanted["scored"]
    assert batch.first_of_span[: batch.num_scored].tolist() == wanted["first"]
    text = text_spans(batch)
    if wanted["num_spans"] == 0:
        assert (text.num_spans, text.num_rows, text.num_vectors, text.longest_rows) == (1, 2, 1, 2)
        assert text.tokens[:2].tolist() == [START, START]
        assert text.slots[:1].tolist() == [len(samples) * S], "the bin"
        return
    assert text.num_spans == wanted["num_spans"]
    assert text.longest_rows == wanted["longest"]
    assert text.num_rows == len(wanted["rows"])
    assert text.num_vectors == len(wanted["vectors"])
    for name in ("positions", "cells"):
        assert getattr(text, name)[: text.num_rows].tolist() == wanted[name]
    assert text.tokens[: text.num_rows].tolist() == wanted["rows"]
    assert text.vectors[: text.num_vectors].tolist() == wanted["vectors"]
    assert text.slots[: text.num_vectors].tolist() == wanted["slots"]
    filled = batch.tokens.flatten()[text.slots[: text.num_vectors]]
    assert torch.equal(text.tokens[text.vectors[: text.num_vectors]], filled)


@settings(deadline=None)
@given(chosen=st.lists(layouts(), min_size=1, max_size=4))
def test_batches_equal_loops_over_their_samples(chosen: list[tuple[int, list[Range]]]):
    samples = [
        sample_of(spans, id=i, num_tokens=num_tokens)
        for i, (num_tokens, spans) in enumerate(chosen)
    ]
    batch = collator(tokens=S, spans=S, longest=S)([(0, sample) for sample in samples])
    assert_equals_loops(batch, samples)


def shapes(batch: Batch) -> dict[str, Any]:
    text = text_spans(batch)
    return {
        "tokens": batch.tokens.shape,
        "labels": batch.labels.shape,
        "scored": batch.scored.shape,
        "first_of_span": batch.first_of_span.shape,
        "rows": {text.tokens.shape, text.positions.shape, text.cells.shape},
        "vectors": {text.vectors.shape, text.slots.shape},
    }


def test_shapes_are_the_same_for_all_batches():
    collate = collator()
    batches = [
        collate([(0, sample_of(a, id=1)), (0, sample_of(b, id=2, num_tokens=n))])
        for a, b, n in (
            ([], [], S + 1),
            ([(1, 2)], [], 5),
            ([(1, 9), (9, 13)], [(2, 6), (8, 20)], S + 1),
            ([(i, i + 1) for i in range(1, 9)], [(i, i + 2) for i in range(1, 17, 2)], S + 1),
        )
    ]
    assert [shapes(batch) for batch in batches] == [shapes(batches[0])] * len(batches)
    text = text_spans(batches[0])
    assert text.tokens.shape == (2 * (16 + 8),)
    assert text.slots.shape == (2 * 16,)
    assert batches[0].scored.shape == (2 * S,)


def test_unused_room_points_at_the_bin():
    batch = collator()([(0, sample_of([(2, 6)]))])
    text = text_spans(batch)
    assert (text.slots[text.num_vectors :] == S).all()


def test_first_of_span_is_false_beyond_the_scored_slots():
    """A span that starts at slot 1 is first predicted from slot 0, which also fills the padding."""
    batch = collator()([(0, sample_of([(1, 4)]))])
    assert batch.first_of_span[0]
    assert not batch.first_of_span[batch.num_scored :].any()


def test_dtypes_are_those_the_model_declares():
    batch = collator()([(0, sample_of([(2, 6)]))])
    text = text_spans(batch)
    integers = (batch.tokens, batch.labels, batch.scored, text.tokens, text.positions)
    assert {tensor.dtype for tensor in (*integers, text.cells, text.vectors, text.slots)} == {
        torch.int64
    }
    assert batch.first_of_span.dtype == torch.bool


def test_short_samples_are_padded_and_the_padding_is_never_scored():
    batch = collator()([(0, sample_of([(2, 4)], num_tokens=6))])
    assert (batch.tokens[0, 6:] == PADDING).all()
    assert (batch.labels[0, 5:] == UNSCORED).all()
    assert batch.scored[: batch.num_scored].tolist() == [0, 1, 3, 4]


def test_epochs_reach_the_policy():
    policy = reader(RandomSpansConfig(full_sequence_tokens=512, min_tokens=64))
    collate = Collator(
        sequence_tokens=S,
        readers={"text": policy},
        padding=PADDING,
    )
    sample = sample_of(None, id=4)
    for epoch in range(5):
        batch = collate([(epoch, sample)])
        text = text_spans(batch)
        wanted = [t for a, b in policy.choose(sample, epoch=epoch) for t in range(a, b)]
        assert text.slots[: text.num_vectors].tolist() == wanted


def test_spans_of_two_modalities_must_not_overlap():
    def collate(other: list[int]) -> Batch:
        kinds = {"text": [[2, 6]], "image": [other, [15, 17]]}
        readers = {
            modality: reader(FixedSpansConfig(kind="fixed", ranges=ranges))
            for modality, ranges in kinds.items()
        }
        collator = Collator(sequence_tokens=S, readers=readers, padding=PADDING)
        return collator([(0, sample_of(None, num_tokens=2)), (0, sample_of(None, id=41))])

    assert len(collate([6, 8]).spans) == 2
    for other in ([5, 8], [1, 3], [3, 4]):
        with pytest.raises(
            DataError, match=r"sample 41 has spans of (text|image) and (text|image) that"
        ):
            collate(other)


def test_a_gpt_has_no_spans():
    collate = Collator(sequence_tokens=S, readers={}, padding=PADDING)
    batch = collate([(0, sample_of([(2, 6)]))])
    assert dict(batch.spans) == {}
    assert batch.num_scored == S
    assert not batch.first_of_span.any()


def within(kind: TextSpansConfig = STORED) -> Collator:
    return Collator(
        sequence_tokens=S,
        readers={"text": reader(kind, tokens=S, spans=S, longest=S)},
        padding=PADDING,
        attend="within",
    )


@settings(deadline=None)
@given(cuts=st.lists(st.sets(st.integers(1, S), max_size=5), min_size=1, max_size=3))
def test_documents_of_a_row_are_numbered_and_count_for_themselves(cuts: list[set[int]]):
    samples: list[Sample] = []
    for id, places in enumerate(cuts):
        edges = [0, *sorted(places)]
        scored = None if id % 2 else np.arange(edges[-1]) % 5 != 3
        samples.append(
            Sample(
                id=id,
                tokens=np.arange(edges[-1]) + 10,
                documents=np.array(list(pairwise(edges)), dtype=np.int64).reshape(-1, 2),
                scored=scored,
            )
        )
    batch = within()([(0, sample) for sample in samples])
    assert batch.documents is not None
    assert batch.positions is not None
    bounds = {len(samples) * S}
    for row, sample in enumerate(samples):
        assert sample.documents is not None
        positions, labels = [0] * S, [UNSCORED] * S
        bounds.add(row * S)
        for start, stop in sample.documents.tolist():
            bounds |= {row * S + min(start, S), row * S + min(stop, S)}
            for t in range(start, stop):
                if t < S:
                    positions[t] = t - start
                if t > start and (sample.scored is None or sample.scored[t]):
                    labels[t - 1] = int(sample.tokens[t])
        assert batch.positions[row].tolist() == positions
        assert batch.labels[row].tolist() == labels
    flat = batch.labels.flatten()
    assert (
        batch.scored[: batch.num_scored].tolist() == (flat != UNSCORED).nonzero().flatten().tolist()
    )
    found = batch.documents.tolist()
    assert found == sorted(found)
    assert set(found) == bounds
    assert batch.documents.dtype == torch.int32
    assert len(found) - 1 in {len(samples) * 2**k for k in range(5)}, "few sizes"
    assert batch.positions.dtype == torch.int64
    assert batch.positions.is_contiguous()


def test_the_last_token_of_a_row_belongs_to_its_last_document():
    sample = sample_of([(13, 18)])
    split = replace(sample, documents=np.array([[0, 12], [12, S + 1]]))
    batch = within()([(0, split)])
    assert batch.labels[0, S - 1] == sample.tokens[S]
    assert batch.labels[0, 11] == UNSCORED
    assert batch.labels[0, 12] == sample.tokens[13]


def test_across_documents_nothing_is_numbered():
    sample = replace(sample_of([]), documents=np.array([[0, 12], [12, S + 1]]))
    batch = collator()([(0, sample)])
    assert batch.documents is None
    assert batch.positions is None
    assert batch.num_scored == S


def test_a_sample_that_names_no_documents_is_one():
    batch = within()([(0, sample_of([(2, 6)], num_tokens=9))])
    plain = collator()([(0, sample_of([(2, 6)], num_tokens=9))])
    assert batch.documents is not None
    assert batch.positions is not None
    assert batch.documents.tolist() == [0, 9, S]
    assert batch.positions.tolist() == [[*range(9), *[0] * (S - 9)]]
    assert torch.equal(batch.labels, plain.labels)


def test_spans_in_two_documents_are_refused_within_them():
    sample = replace(sample_of([(2, 6), (10, 14)], id=41), documents=np.array([[0, 12], [12, S]]))
    collator()([(0, sample)])
    with pytest.raises(DataError, match=r"sample 41 has spans \[\[2, 6\], \[10, 14\]\], but with"):
        within()([(0, sample_of([])), (0, sample)])


def test_layouts_reach_the_policy():
    policy = reader(RandomSpansConfig())
    sample = sample_of(None, id=4)
    batch = within(RandomSpansConfig())([(1, sample), (1, sample), (2, sample)], choices=[0, 3, 1])
    wanted = [
        row * S + t
        for row, (epoch, choice) in enumerate([(1, 0), (1, 3), (2, 1)])
        for a, b in policy.choose(sample, epoch=epoch, choice=choice)
        for t in range(a, b)
    ]
    text = text_spans(batch)
    assert text.slots[: text.num_vectors].tolist() == wanted


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([(1, 10), (11, 19)], "17 tokens in spans but there is room for 16"),
        ([(i, i + 1) for i in range(1, 10)], "9 spans but there is room for 8"),
        ([(1, 14)], "13 tokens in one span but there is room for 12"),
    ],
)
def test_spans_beyond_the_capacity_are_refused(spans: list[Range], says: str):
    with pytest.raises(DataError, match=f"sample 41 has {says}: raise data.span_capacity"):
        collator()([(0, sample_of([])), (0, sample_of(spans, id=41))])


def test_a_sample_longer_than_the_sequence_is_refused():
    with pytest.raises(DataError, match="sample 7 has 23 tokens but sequences have 20 slots"):
        collator()([(0, sample_of([], id=7, num_tokens=S + 3))])


@pytest.mark.parametrize(
    "spans",
    [[(17, S + 1)], [(0, 3)], [(5, 5)], [(8, 4)], [(2, 6), (4, 9)], [(8, 10), (2, 4)]],
    ids=["past the end", "over <s>", "empty", "backwards", "overlapping", "falling"],
)
def test_stored_spans_that_make_no_sense_are_refused(spans: list[Range]):
    """Slots past the end would be those of the next sequence."""
    with pytest.raises(DataError, match="sample 41"):
        collator()([(0, sample_of(spans, id=41)), (0, sample_of([]))])


def test_capacity_of_the_paper():
    assert RandomSpansConfig().room(2048) == (640, 10)
