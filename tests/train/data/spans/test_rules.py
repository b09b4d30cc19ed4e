"""Spans by rule: which segments, and what holds for every document."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.train.data.packed import SPECIAL, Seeded, check_places, document, pack, packed_samples
from train.data.sample import Sample
from train.data.spans.rules import RuleSpansConfig

WHICH = ("first", "last", "alternate", "longest", "random")


def rule(which: str, *, seed: int = 0, **options: Any) -> Seeded[RuleSpansConfig]:
    config = RuleSpansConfig.model_validate({"kind": "rules", "which": which} | options)
    return Seeded(config, seed)


def chosen(policy: Seeded[RuleSpansConfig], sample: Sample, *, choice: int = 0) -> list[list[int]]:
    return policy.choose(sample, epoch=0, choice=choice).tolist()


PARAGRAPHS = pack(document(10, 20, 30, 25), document(12, 40, 11))
"""`</s>` at 11, 32, 63; `</d>` at 89; then `<s>` at 90, `</s>` at 103 and 144, `</d>` at 156."""


@pytest.mark.parametrize(
    ("which", "choices"),
    [
        ("first", [[[1, 11], [91, 103]], [[12, 32], [104, 144]], [[33, 63], [145, 156]]]),
        ("last", [[[64, 89], [145, 156]], [[33, 63], [104, 144]]]),
        ("longest", [[[33, 63], [104, 144]], [[64, 89], [91, 103]]]),
        (
            "alternate",
            [[[12, 32], [64, 89], [104, 144]], [[1, 11], [33, 63], [91, 103], [145, 156]]],
        ),
    ],
)
def test_rules_mean_what_they_say(which: str, choices: list[list[list[int]]]):
    policy = rule(which, ratio=0.75)
    for choice, wanted in enumerate(choices):
        assert chosen(policy, PARAGRAPHS, choice=choice) == wanted


def test_layouts_go_around():
    policy = rule("first", ratio=0.75)
    assert chosen(policy, PARAGRAPHS, choice=12) == chosen(policy, PARAGRAPHS)
    alone = pack(document(60))
    assert chosen(policy, alone, choice=1) == chosen(policy, alone) == [[1, 46]]


def test_without_ranges_the_tokens_tell_where_documents_end():
    tokens = [*document(10, 20), *document(30, 15, start=False), *document(50, start=False)]
    sample = Sample(id=0, tokens=np.array(tokens))
    assert chosen(rule("first", ratio=0.4), sample) == [[1, 11], [33, 51], [80, 100]]


def test_blocks_are_counted_from_the_first_token():
    policy = rule("first", unit="block", max_tokens=16, min_tokens=4)
    sample = pack(document(70, 30), document(9))
    assert chosen(policy, sample) == [[1, 17], [104, 108]], "half of nine tokens at most"
    assert chosen(policy, sample, choice=1)[0] == [17, 33]


def test_the_encoder_reads_the_beginning_of_a_segment_that_is_too_long():
    sample = pack(document(300, 40))
    assert chosen(rule("first", max_tokens=128), sample) == [[1, 129]]
    assert chosen(rule("longest", max_tokens=500, ratio=0.25), sample) == [[1, 1 + 341 // 4]]


def test_short_segments_are_passed_over():
    sample = pack(document(3, 50, 60), document(5), document(20))
    policy = rule("first", min_tokens=12)
    assert chosen(policy, sample) == [[5, 55]], "and half of 20 tokens is too little"


def test_alternation_counts_short_segments():
    sample = pack(document(30, 2, 30, 31, 33, 32))
    assert chosen(rule("alternate", min_tokens=8), sample) == [[66, 97], [132, 163 + 1]]


def test_a_task_keeps_something_to_predict():
    """Only the first paragraph is scored: read by the encoder, it would leave no target."""
    sample = pack(document(10, 20, 30), document(10, 20))
    scored = np.zeros(len(sample.tokens), dtype=np.bool_)
    scored[1:11] = True
    scored[64:74] = True
    scored[94] = True
    task = Sample(id=0, tokens=sample.tokens, documents=sample.documents, scored=scored)
    assert chosen(rule("first"), sample) == [[1, 11], [65, 75]]
    assert chosen(rule("first"), task) == [[65, 75]]
    assert chosen(rule("last"), task) == [[33, 63], [76, 91]]


def test_padding_is_no_document():
    tokens = [*document(30, 30), *[SPECIAL.padding] * 40]
    sample = Sample(id=0, tokens=np.array(tokens))
    assert chosen(rule("first"), sample) == [[1, 31]]


@settings(max_examples=200, deadline=None)
@given(
    sample=packed_samples(),
    which=st.sampled_from(WHICH),
    unit=st.sampled_from(["paragraph", "block"]),
    ratio=st.floats(0.05, 0.75),
    shortest=st.integers(1, 40),
    extra=st.integers(0, 100),
    choice=st.integers(0, 5),
    scored=st.integers(0, 2**32),
)
def test_every_choice_keeps_the_rules(
    sample: Sample,
    which: str,
    unit: str,
    ratio: float,
    shortest: int,
    extra: int,
    choice: int,
    scored: int,
):
    options = {"min_tokens": shortest, "max_tokens": shortest + extra, "ratio": ratio, "unit": unit}
    policy = rule(which, seed=3, **options)
    mask = np.random.default_rng(scored).random(len(sample.tokens)) < (scored % 3) / 3
    task = Sample(
        id=sample.id, source=sample.source, tokens=sample.tokens, documents=sample.documents,
        scored=mask if scored % 2 else None,
    )  # fmt: skip
    spans = policy.choose(task, epoch=1, choice=choice)
    check_places(task, spans)
    policy.choose(PARAGRAPHS, epoch=9)
    again = rule(which, seed=3, **options).choose(task, epoch=1, choice=choice)
    np.testing.assert_array_equal(spans, again)
    assert task.documents is not None
    for a, b in task.documents:
        inside = [(start, stop) for start, stop in spans if a <= start < b]
        lengths = [stop - start for start, stop in inside]
        assert sum(lengths) <= ratio * (b - a)
        assert all(shortest <= length <= shortest + extra for length in lengths)
        if unit == "paragraph":
            for start, stop in inside:
                assert SPECIAL.paragraph not in task.tokens[start:stop]
                assert start == a or task.tokens[start - 1] in (SPECIAL.paragraph, SPECIAL.start)
        if which in ("first", "last", "longest"):
            assert len(inside) <= 1
        if inside and task.scored is not None:
            outside = task.scored[a:b].copy()
            for start, stop in inside:
                outside[start - a : stop - a] = False
            assert outside.any(), "something is predicted"
    tokens, number = policy.config.room(len(task.tokens) - 1)
    lengths = spans[:, 1] - spans[:, 0]
    assert lengths.sum() <= tokens
    assert len(lengths) <= number
    assert lengths.max(initial=0) <= policy.config.load(len(task.tokens) - 1).longest


def test_random_segments_differ_by_epoch_layout_source_and_seed():
    sample = pack(*[document(*[20] * 12) for _ in range(3)], id=4)
    policy = rule("random", ratio=0.25)
    base = chosen(policy, sample)
    assert len(base) == 9, "three of twelve paragraphs a document"
    elsewhere = pack(*[document(*[20] * 12) for _ in range(3)], id=4, source=1)
    others = [
        chosen(policy, sample, choice=1),
        chosen(policy, sample, choice=2),
        policy.choose(sample, epoch=1).tolist(),
        chosen(policy, elsewhere),
        chosen(rule("random", ratio=0.25, seed=1), sample),
    ]
    everything = [base, *others]
    assert all(a != b for i, a in enumerate(everything) for b in everything[:i])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"min_tokens": 20, "max_tokens": 10}, "min_tokens: must not exceed max_tokens"),
        ({"ratio": 0.9}, "less than or equal to 0.75"),
        ({"which": "middle"}, "'first', 'last', 'alternate', 'longest' or 'random'"),
    ],
)
def test_impossible_rules_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        RuleSpansConfig.model_validate({"kind": "rules", "which": "first"} | options)
