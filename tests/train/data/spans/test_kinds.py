"""The span sampler: what holds for every sequence, and what holds on average."""

import hashlib
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.train.data.packed import (
    SPECIAL,
    Seeded,
    check_places,
    document,
    in_another_process,
    pack,
    packed_samples,
)
from train.data.sample import Sample
from train.data.spans import at_random
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.given import FixedSpansConfig, StoredSpansConfig
from train.data.spans.kinds import SpansConfig
from train.data.spans.places import NO_SPANS, Spans

DOCUMENT_END = SPECIAL.document


def sample_of(documents: list[int], *, id: int = 0, slots: int | None = None) -> Sample:
    """`<s>` and documents of these many tokens, each closed by its end token; cut to S + 1."""
    tokens = [0]
    for length in documents:
        tokens += [9] * max(length - 1, 0) + [DOCUMENT_END]
    if slots is not None:
        tokens = (tokens + [9] * (slots + 1))[: slots + 1]
    return Sample(id=id, tokens=np.array(tokens, dtype=np.int64))


def long_document(slots: int, *, id: int = 0) -> Sample:
    return sample_of([], id=id, slots=slots)


def sampler(*, seed: int = 0, **options: Any) -> Seeded[RandomSpansConfig]:
    return Seeded(RandomSpansConfig.model_validate({"kind": "random"} | options), seed)


def lengths_of(spans: Spans) -> list[int]:
    return [int(stop - start) for start, stop in spans]


def check_rules(policy: Seeded[RandomSpansConfig], sample: Sample, spans: Spans) -> None:
    """What the paper demands of every choice of spans."""
    slots = len(sample.tokens) - 1
    shortest, longest = policy.config.lengths(slots)
    assert spans.dtype == np.int64
    assert spans.shape == (len(spans), 2)
    for start, stop in spans:
        assert 1 <= start < stop <= slots
        assert shortest <= stop - start <= longest
        assert DOCUMENT_END not in sample.tokens[start:stop]
    for (_, stop), (start, _) in pairwise(spans.tolist()):
        assert stop <= start, "in rising order, without overlap"
    assert sum(lengths_of(spans)) <= max(shortest, math.ceil(policy.config.ratio * slots))


@settings(max_examples=150, deadline=None)
@given(
    slots=st.integers(32, 2048),
    ratio=st.floats(0.01, 0.75),
    documents=st.lists(st.integers(1, 700), max_size=40),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
    id=st.integers(0, 2**40),
)
def test_every_choice_keeps_the_rules(
    slots: int, ratio: float, documents: list[int], seed: int, epoch: int, id: int
):
    policy = sampler(ratio=ratio, seed=seed)
    sample = sample_of(documents, id=id, slots=slots)
    spans = policy.choose(sample, epoch=epoch)
    check_rules(policy, sample, spans)
    again = sampler(ratio=ratio, seed=seed).choose(sample, epoch=epoch)
    np.testing.assert_array_equal(spans, again)


@settings(max_examples=150, deadline=None)
@given(
    full=st.integers(32, 2048),
    slots=st.integers(4, 2048),
    ratio=st.floats(0.01, 0.75),
    shortest=st.integers(2, 128),
    extra=st.integers(0, 128),
    id=st.integers(0, 1000),
)
def test_spans_fit_the_capacity_made_for_their_ratio(
    full: int, slots: int, ratio: float, shortest: int, extra: int, id: int
):
    """A sample may be shorter than its sequence; its spans, shorter and more, must fit too."""
    slots = min(slots, full)
    policy = sampler(ratio=ratio, min_tokens=shortest, max_tokens=shortest + extra)
    tokens, spans = policy.config.room(full)
    lengths = lengths_of(policy.choose(long_document(slots, id=id), epoch=0))
    assert sum(lengths) <= tokens
    assert len(lengths) <= spans


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize(
    ("shortest", "longest", "slots"),
    [
        (64, 128, 1024),
        (100, 100, 1024),
        (100, 110, 1024),
        (96, 128, 2048),
        (60, 64, 1024),
        (20, 80, 1024),
        (250, 260, 1024),
        (500, 500, 1024),
        (1000, 1100, 8192),
        (2000, 4000, 1024),
    ],
)
@pytest.mark.parametrize("key", ["ratio", "ratio_by_tokens"])
def test_a_ratio_is_reached_or_what_is_reached_is_said(
    key: str, shortest: int, longest: int, slots: int, ratio: float
):
    by_tokens = key == "ratio_by_tokens"
    given: dict[str, Any] = {key: [[slots, ratio]] if by_tokens else ratio}
    policy = sampler(min_tokens=shortest, max_tokens=longest, **given)
    told = policy.config.shortfall(slots)
    filled = [
        sum(lengths_of(policy.choose(long_document(slots, id=i), epoch=0))) / slots
        for i in range(100)
    ]
    # Where one span fills more than the ratio, few sequences have one.
    error = 3 * float(np.std(filled)) / 100**0.5 + 0.01 * ratio
    if told is None:
        assert np.mean(filled) >= 0.96 * ratio - error
        return
    what = f"a document of {slots} tokens" if by_tokens else f"{slots} slots"
    assert told.startswith(f"{key}: {ratio} of {what} is not reached by spans of {shortest} to")
    reached = float(told.partition("fill about ")[2].split()[0])
    assert reached < 0.96 * ratio
    assert np.mean(filled) == pytest.approx(reached, abs=error)


def test_ratios_of_documents_are_looked_at_by_their_lengths():
    config = sampler(
        ratio_by_tokens=[[100, 0.25], [1024, 0]], min_tokens=100, max_tokens=110
    ).config
    told = config.shortfall(2048)
    assert told is not None
    assert "ratio_by_tokens: 0.25 of a document of 100 tokens is not reached by spans of 10" in told


@pytest.mark.parametrize(
    ("shortest", "longest", "slots"),
    [(2, 65536, 2**17), (4096, 8192, 2**17), (64, 255, 2**20), (2, 2**20, 2**20), (2, 3, 2**20)],
)
def test_what_is_reached_is_found_at_once(
    shortest: int, longest: int, slots: int, monkeypatch: pytest.MonkeyPatch
):
    """Counted in places, of which 0.1 s has some 5,000."""
    asked = 0

    def place(*arguments: Any) -> at_random.Range | None:
        nonlocal asked
        asked += 1
        return placed(*arguments)

    placed = at_random._place  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(at_random, "_place", place)
    sampler(ratio=0.6, min_tokens=shortest, max_tokens=longest).config.shortfall(slots)
    assert asked < 5000


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.5])
@pytest.mark.parametrize("slots", [64, 96, 100, 128, 200, 256, 333, 512, 1000, 1024, 2048])
def test_ratio_means_what_it_says_at_every_length(slots: int, ratio: float):
    policy = sampler(ratio=ratio)
    shares = [
        sum(lengths_of(policy.choose(long_document(slots, id=i), epoch=0))) / slots
        for i in range(60)
    ]
    assert np.mean(shares) == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("slots", [8, 16, 20, 32, 48])
def test_ratio_holds_on_average_over_very_short_sequences(slots: int):
    policy = sampler()
    shares = [
        sum(lengths_of(policy.choose(long_document(slots, id=i), epoch=0))) / slots
        for i in range(800)
    ]
    assert np.mean(shares) == pytest.approx(0.25, rel=0.1)


def test_ratio_holds_where_documents_are_of_common_length():
    policy = sampler()
    sample = sample_of([310, 500, 170, 420, 260, 388], slots=2048)
    total = sum(sum(lengths_of(policy.choose(sample, epoch=e))) for e in range(50))
    assert total / 50 / 2048 == pytest.approx(0.25, rel=0.03)


def test_what_long_spans_cannot_fill_goes_to_shorter_ones():
    """Documents of 70 tokens hold one span each: most lengths drawn are cut down to fit."""
    policy = sampler()
    for id in range(60):
        sample = sample_of([70] * 30, id=id, slots=2048)
        spans = policy.choose(sample, epoch=0)
        check_rules(policy, sample, spans)
        assert 512 - sum(lengths_of(spans)) < 64, "less is left than any span would need"


def test_documents_shorter_than_any_span_are_left_alone():
    assert len(sampler().choose(sample_of([40] * 60, slots=2048), epoch=0)) == 0
    assert len(sampler().choose(sample_of([1] * 2048, slots=2048), epoch=0)) == 0


def test_lengths_are_those_of_the_paper_and_shrink_with_the_sequence():
    config = RandomSpansConfig()
    assert config.lengths(2048) == config.lengths(1024) == (64, 128)
    assert config.lengths(512) == (32, 64)
    assert config.lengths(64) == (4, 8)
    shortest, longest = config.lengths(8)
    assert 2 <= shortest <= longest <= 3
    policy = sampler()
    drawn = [
        length
        for i in range(150)
        for length in lengths_of(policy.choose(long_document(2048, id=i), epoch=0))
    ]
    assert min(drawn) < 68
    assert max(drawn) > 124
    assert len(set(drawn)) > 50


def test_every_slot_but_the_first_can_lie_in_a_span():
    policy = sampler()
    covered = np.zeros(257)
    for i in range(2000):
        for start, stop in policy.choose(long_document(256, id=i), epoch=0):
            covered[start:stop] += 1
    assert covered[0] == 0, "slot 0 holds <s>"
    assert covered[256] == 0, "the last token is a target and no slot"
    share = covered / 2000
    # Ends are in a span less often, as for any sampler without overlap.
    assert (share[1:256] > 0.01).all()
    assert share[40:216] == pytest.approx(0.27, abs=0.06)


def test_choice_is_pure_in_seed_epoch_and_sample():
    sample = long_document(1024, id=5)
    spans = sampler(seed=1).choose(sample, epoch=2)
    used = sampler(seed=1)
    for i in range(7):
        used.choose(long_document(1024, id=i), epoch=i)
    np.random.seed(3)  # the global stream has no say
    np.testing.assert_array_equal(used.choose(sample, epoch=2), spans)
    others = [
        sampler(seed=2).choose(sample, epoch=2),
        sampler(seed=1).choose(sample, epoch=3),
        sampler(seed=1).choose(long_document(1024, id=6), epoch=2),
    ]
    for other in others:
        assert other.tolist() != spans.tolist()
    starts = {
        tuple(sampler(seed=1).choose(sample, epoch=epoch)[:, 0].tolist()) for epoch in range(30)
    }
    assert len(starts) == 30


def test_choices_are_those_of_earlier_versions():
    """A run that goes on under a newer version must draw what it would have drawn."""
    sample = sample_of([310, 500, 170, 420, 260, 388], id=5, slots=2048)
    assert sampler(seed=3).choose(sample, epoch=1).tolist() == [
        [19, 88], [182, 247], [572, 636], [638, 725], [1025, 1090], [1691, 1777], [1924, 2000]
    ]  # fmt: skip
    digest = hashlib.sha256()
    documents = ([], [310, 500, 170, 420], [40] * 60, [70] * 30, [5, 900, 3])
    for id, slots in enumerate([1, 5, 17, 48, 64, 100, 255, 512, 1000, 2048]):
        for place, lengths in enumerate(documents):
            for ratio in (0.01, 0.25, 0.4, 0.75):
                sample = sample_of(list(lengths), id=id + place * 2**33, slots=slots)
                spans = sampler(seed=place, ratio=ratio).choose(sample, epoch=id)
                digest.update(spans.astype("<i8").tobytes() + bytes([len(spans) % 256]))
    assert digest.hexdigest() == "09dc23da4c4ac6cf4d99ecb6d22af45d1300078a84c45fb1b0be7917991967cb"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ratio": 0.25}, "45ccf24b2d630441"),
        ({"ratio": 0.4}, "da7b3d84daafc0c3"),
        ({"ratio": 0.75}, "c01b719b1827deba"),
        ({"ratio": 0.01}, "82c99fd55f3ba3bb"),
        ({"ratio": 0.001}, "c35887a957f1a447"),
        ({"min_tokens": 100, "max_tokens": 110}, "3bdc00e8ee365ea4"),
        ({"min_tokens": 64, "max_tokens": 64}, "a343e1cf9d6e6fac"),
        ({"min_tokens": 12, "max_tokens": 13, "full_sequence_tokens": 64}, "e8911ee1e3c78075"),
        ({"min_tokens": 2, "max_tokens": 1000, "ratio": 0.6}, "c01b1c1339d88810"),
        ({"ratio_by_tokens": [[256, 0.1], [1024, 0.25]]}, "1229670e07fa18de"),
        ({"ratio_by_tokens": [[8, 0.0], [64, 0.05], [1024, 0.25]]}, "c464ee679e99f771"),
        ({"ratio_by_tokens": [[1, 0.05]], "min_tokens": 128}, "454a23a0d24b98ac"),
        ({"ratio_by_tokens": [[16, 0.75]], "min_tokens": 120}, "c46b3dd8fdb2dc9a"),
    ],
    ids=str,
)
def test_no_draw_moves(options: dict[str, Any], expected: str):
    """Of any configuration: a run that goes on would see other spans, and nothing would say so."""
    digest = hashlib.sha256()
    documents = ([], [310, 500, 170, 420], [40] * 60, [70] * 30, [5, 900, 3], [7, 100, 2] * 30)
    for id, slots in enumerate([1, 5, 17, 48, 64, 100, 255, 512, 1000, 1024, 2048]):
        for place, lengths in enumerate(documents):
            for epoch in range(3):
                sample = sample_of(list(lengths), id=id + place * 2**33, slots=slots)
                spans = sampler(seed=place, **options).choose(sample, epoch=epoch)
                digest.update(spans.astype("<i8").tobytes() + bytes([len(spans) % 256]))
    assert digest.hexdigest()[:16] == expected


def test_choice_ignores_what_the_tokens_say():
    """Only ends of documents matter: spans do not depend on content."""
    sample = sample_of([300, 400], slots=1024)
    other = Sample(id=0, tokens=np.where(sample.tokens == 9, 11, sample.tokens))
    policy = sampler()
    np.testing.assert_array_equal(policy.choose(sample, epoch=0), policy.choose(other, epoch=0))


@pytest.mark.parametrize("slots", [1, 2, 3, 512])
def test_ratio_zero_and_tiny_samples_have_no_spans(slots: int):
    assert len(sampler(ratio=0.0).choose(long_document(slots), epoch=0)) == 0
    if slots < 4:
        assert len(sampler().choose(long_document(slots), epoch=0)) == 0


CHOICES = sampler(seed=1)


def test_choices_and_sources_differ_and_the_first_is_as_ever():
    sample = long_document(1024, id=5)
    base = CHOICES.choose(sample, epoch=2).tolist()
    assert CHOICES.choose(sample, epoch=2, choice=0).tolist() == base
    elsewhere = Sample(id=5, source=1, tokens=sample.tokens)
    # An id of two words must not pass for a source or a choice.
    large = Sample(id=5 + 2**32, tokens=sample.tokens)
    found = [
        base,
        *(CHOICES.choose(sample, epoch=2, choice=choice).tolist() for choice in (1, 2, 3)),
        *(CHOICES.choose(elsewhere, epoch=2, choice=choice).tolist() for choice in (0, 1, 2)),
        *(CHOICES.choose(large, epoch=2, choice=choice).tolist() for choice in (0, 1)),
    ]
    assert len({str(spans) for spans in found}) == len(found)


@settings(max_examples=100, deadline=None)
@given(
    sample=packed_samples(),
    choice=st.integers(0, 3),
    ratio=st.floats(0.01, 0.75),
    by_tokens=st.booleans(),
)
def test_packed_documents_keep_their_boundaries(
    sample: Sample, choice: int, ratio: float, by_tokens: bool
):
    options: dict[str, Any] = {"ratio": ratio}
    if by_tokens:
        options = {"ratio_by_tokens": [[20, 0.1], [300, ratio]]}
    policy = sampler(**options)
    spans = policy.choose(sample, epoch=0, choice=choice)
    check_places(sample, spans)
    tokens, number = policy.config.room(len(sample.tokens) - 1)
    assert sum(lengths_of(spans)) <= tokens
    assert len(spans) <= number
    np.testing.assert_array_equal(sampler(**options).choose(sample, epoch=0, choice=choice), spans)


def test_another_process_chooses_the_same():
    sample = pack(document(200, 90), document(400), id=2**33 + 1, source=2)
    options: dict[str, Any] = {"ratio_by_tokens": [[256, 0.1], [1024, 0.25]]}
    mine = sampler(**options).choose(sample, epoch=3, choice=1).tolist()
    code = (
        "from tests.train.data.spans.test_kinds import *\n"
        "sample = pack(document(200, 90), document(400), id=2**33 + 1, source=2)\n"
        f"print(sampler(**{options}).choose(sample, epoch=3, choice=1).tolist())"
    )
    assert in_another_process(code) == str(mine)
    assert mine


def test_short_documents_have_fewer_spans():
    """Ratios hold on average document by document, whatever else is in the sequence."""
    lengths = [40, 120, 256, 640, 900, 2000]
    policy = sampler(ratio_by_tokens=[[256, 0.1], [1024, 0.4]])
    totals = np.zeros(len(lengths))
    for id in range(400):
        sample = pack(*[document(length - 2) for length in lengths], id=id)
        assert sample.documents is not None
        spans = policy.choose(sample, epoch=0)
        owners = np.searchsorted(sample.documents[:, 1], spans[:, 0], side="right")
        totals += np.bincount(owners, spans[:, 1] - spans[:, 0], minlength=len(lengths))
    shares = totals / 400 / (np.array(lengths) - 2)
    wanted = [0.1, 0.1, 0.1, 0.25, 0.1 + 0.3 * (898 - 256) / 768, 0.4]
    np.testing.assert_allclose(shares, wanted, rtol=0.05)


def test_many_short_documents_do_not_exceed_the_room():
    """Each rounds its share of a token up or down; all of them up is too many."""
    policy = sampler(ratio_by_tokens=[[1, 0.05]], min_tokens=128)
    tokens, number = policy.config.room(33 * 61 + 32)
    sizes: set[int] = set()
    for id in range(200):
        sample = pack(*[document(60) for _ in range(33)], id=id)
        spans = policy.choose(sample, epoch=0)
        assert sum(lengths_of(spans)) <= tokens
        assert len(spans) <= number
        sizes.add(sum(lengths_of(spans)))
    assert max(sizes) > tokens - 8, "it does come to that"


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([[256, 0.1], [256, 0.2]], "must rise in tokens"),
        ([[512, 0.1], [256, 0.2]], "must rise in tokens"),
        ([[256, 0.1], [512, 0.8]], "between 0 and 0.75"),
        ([[256, -0.1]], "between 0 and 0.75"),
        ([], "at least 1 item"),
        ([[256]], "at least 2 items"),
    ],
)
def test_impossible_ratios_by_length_are_refused(points: list[list[float]], says: str):
    with pytest.raises(ValidationError, match=says):
        RandomSpansConfig(ratio_by_tokens=points)


def test_room_follows_the_largest_ratio():
    config = RandomSpansConfig(ratio=0.1, ratio_by_tokens=[[256, 0.1], [1024, 0.25]])
    assert config.largest_ratio == 0.25
    assert config.room(2048) == (640, 320)


def test_fixed_spans_are_those_inside_the_sample():
    policy = Seeded(FixedSpansConfig(kind="fixed", ranges=[[1, 3], [3, 6], [8, 10]]))
    assert policy.choose(long_document(10), epoch=0).tolist() == [[1, 3], [3, 6], [8, 10]]
    assert policy.choose(long_document(9), epoch=4).tolist() == [[1, 3], [3, 6]]
    nothing = Seeded(FixedSpansConfig(kind="fixed", ranges=[]))
    assert nothing.choose(long_document(9), epoch=0).shape == (0, 2)


def test_stored_spans_are_the_samples_own():
    stored = np.array([[2, 4], [5, 9]])
    sample = Sample(id=0, tokens=np.arange(12), spans=stored)
    policy = Seeded(StoredSpansConfig(kind="stored"))
    assert policy.choose(sample, epoch=0).tolist() == stored.tolist()
    without = Sample(id=0, tokens=np.arange(12))
    assert policy.choose(without, epoch=0).tolist() == NO_SPANS.tolist()


KINDS: TypeAdapter[SpansConfig] = TypeAdapter(SpansConfig)


@pytest.mark.parametrize(
    ("options", "longest", "room", "vectors"),
    [
        ({"kind": "random"}, 128, (640, 10), 512),
        ({"kind": "random", "ratio": 0.5}, 128, (1280, 20), 1024),
        ({"kind": "rules", "which": "first", "ratio": 0.5}, 128, (1024, 128), 1024),
        ({"kind": "rules", "which": "first", "ratio": 0.05}, 102, (102, 12), 102.4),
        ({"kind": "fixed", "ranges": [[4, 12], [20, 24]]}, 8, (12, 2), 12),
        ({"kind": "stored"}, None, (2048, 256), None),
    ],
)
def test_each_kind_answers_for_itself(
    options: dict[str, Any], longest: int | None, room: tuple[int, int], vectors: float | None
):
    kind = KINDS.validate_python(options)
    assert kind.room(2048) == room
    load = kind.load(2048)
    assert (load and load.vectors) == (vectors and pytest.approx(vectors))
    assert (load and load.longest) == longest
    assert not kind.is_idle
    assert kind.is_stored == (options["kind"] == "stored")


def test_spans_that_never_are_leave_a_gpt():
    assert RandomSpansConfig(ratio=0).is_idle
    assert RandomSpansConfig(ratio=0.25, ratio_by_tokens=[[10, 0.0]]).is_idle


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        ([[0, 4]], "slot 0"),
        ([[5, 5]], "hold at least one token"),
        ([[4, 8], [6, 9]], "not overlap"),
        ([[6, 9], [1, 3]], "rise"),
        ([[7, 3]], "rise"),
    ],
)
def test_impossible_ranges_are_refused(ranges: list[list[int]], says: str):
    with pytest.raises(ValidationError, match=says):
        FixedSpansConfig(kind="fixed", ranges=ranges)


def test_lengths_the_wrong_way_round_are_refused():
    with pytest.raises(ValidationError, match="min_tokens: must not exceed max_tokens"):
        RandomSpansConfig(min_tokens=9, max_tokens=8)
