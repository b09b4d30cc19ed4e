from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train.data.pack as pack_module
from train.data.document import Kind
from train.data.order import GlobalOrder
from train.data.pack import LEAST_FILL, Room, SequenceShape, pack
from train.data.sequences import FittedSequences
from train.errors import DataError

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=120)


def table(tokens, *more) -> np.ndarray:
    return np.array([tokens, *more], dtype=np.int64).T


def text_room(*, spans: int, slots: int) -> tuple[Room]:
    return (Room(kind=Kind.TEXT_SPAN, spans=spans, slots=slots),)


@settings(max_examples=250, deadline=None)
@given(lengths, st.integers(40, 128), st.integers(0, 1))
def test_every_token_has_one_place_and_no_row_overflows(
    tokens: list[int], slots: int, opening: int
) -> None:
    packed = pack(table(tokens), SequenceShape(slots=slots, opening=opening))
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(len(packed)):
        sequence = packed.sequence(number)
        assert len(sequence)
        assert sum(end - begin + opening for _, begin, end in sequence.tolist()) <= slots
        seen.update((d, t) for d, begin, end in sequence.tolist() for t in range(begin, end))
    assert seen == Counter((d, t) for d, length in enumerate(tokens) for t in range(length))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(24, 64))
def test_spans_stay_whole_and_have_room(data: st.DataObject, slots: int) -> None:
    tokens = data.draw(st.lists(st.integers(4, slots), min_size=1, max_size=60))
    spans = [data.draw(st.integers(0, 2)) for _ in tokens]
    inside = [count * data.draw(st.integers(1, 2)) for count in spans]
    shape = SequenceShape(slots=slots, rooms=text_room(spans=3, slots=6))
    packed = pack(table(tokens, spans, inside), shape)
    for number in range(len(packed)):
        sequence = packed.sequence(number).tolist()
        assert sum(spans[document] for document, _, _ in sequence) <= 3
        assert sum(inside[document] for document, _, _ in sequence) <= 6
        for document, begin, end in sequence:
            if spans[document]:
                assert (begin, end) == (0, tokens[document]), "a document with spans was cut"
    whole = Counter(document for document, _, _ in packed.parts.tolist() if spans[document])
    assert set(whole.values()) <= {1}
    assert set(whole) == {document for document, count in enumerate(spans) if count}


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(12, 40), st.integers(0, 1))
def test_a_long_document_is_cut_beside_its_items(
    data: st.DataObject, slots: int, opening: int
) -> None:
    """Every slot once, no item in two parts, no part beyond a limit, and none without need."""
    limits = [(2, 10), (3, 8)]
    rooms = tuple(
        Room(kind=kind, spans=spans, slots=taken, vectors=len)
        for kind, (spans, taken) in zip((Kind.IMAGE, Kind.AUDIO), limits, strict=True)
    )
    shape = SequenceShape(slots=slots + opening, opening=opening, rooms=rooms)
    rows: list[list[int]] = []
    items: dict[int, np.ndarray] = {}
    for document in range(data.draw(st.integers(1, 6))):
        at, bounds = 0, []
        for _ in range(data.draw(st.integers(0, 7))):
            at += data.draw(st.integers(0, 9))
            size = data.draw(st.integers(1, 8))
            bounds.append((at, at + size, data.draw(st.integers(0, 1))))
            at += size
        at += data.draw(st.integers(1, 5))
        taken = [
            number
            for room in range(2)
            for mine in [[stop - start for start, stop, of in bounds if of == room]]
            for number in (len(mine), sum(mine))
        ]
        rows.append([at, *taken])
        flat = [limit for pair in limits for limit in pair]
        if bounds and (at > slots or any(a > b for a, b in zip(taken, flat, strict=True))):
            items[document] = np.array(bounds)
    packed = pack(np.array(rows), shape, items=items)
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(len(packed)):
        used = [0, 0, 0, 0]
        sequence = packed.sequence(number).tolist()
        closed = [end in items[n][:, 1].tolist() for n, _, end in sequence if n in items]
        used_slots = sum(end - begin + opening for _, begin, end in sequence)
        assert used_slots + sum(closed) <= slots + opening, "none is left behind an item"
        for document, begin, end in sequence:
            seen.update((document, slot) for slot in range(begin, end))
            if document not in items:
                used = [a + b for a, b in zip(used, rows[document][1:], strict=True)]
                if any(rows[document][1:]):
                    assert (begin, end) == (0, rows[document][0])
                continue
            for start, stop, room in items[document].tolist():
                assert stop <= begin or end <= start or begin <= start < stop <= end, "it was cut"
                if begin <= start < end:
                    used[2 * room] += 1
                    used[2 * room + 1] += stop - start
        assert all(a <= b for a, b in zip(used, [2, 10, 3, 8], strict=True))
    assert seen == Counter((d, slot) for d, row in enumerate(rows) for slot in range(row[0]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda random: np.exp(random.normal(6, 1.2, 4000)),
        lambda random: random.exponential(200, 4000),
        lambda random: random.integers(1, 60, 20_000),
        lambda random: np.full(2000, 1229),  # two never share a sequence of 2,048
        lambda random: random.integers(1030, 1400, 2000),
    ],
    ids=["lognormal", "exponential", "short", "three fifths", "over half"],
)
@pytest.mark.parametrize("opening", [0, 1])
def test_rows_are_full(draw, opening: int) -> None:
    tokens = draw(np.random.default_rng(0)).astype(np.int64) + 1
    packed = pack(table(tokens.tolist()), SequenceShape(slots=2048, opening=opening))
    used = int((packed.parts[:, 2] - packed.parts[:, 1] + opening).sum())
    assert used / (2048 * len(packed)) >= LEAST_FILL


def test_whole_documents_are_not_cut_where_they_fit_well() -> None:
    tokens = [600, 500, 400, 300, 200, 48] * 20
    packed = pack(table(tokens), SequenceShape(slots=1024))
    assert len(packed.parts) == len(tokens)


def test_a_document_with_spans_that_fits_no_row_is_named() -> None:
    shape = SequenceShape(slots=64, rooms=text_room(spans=2, slots=20))
    order = GlobalOrder([2], seed=0, shuffle=False)
    for refused in ([65, 1, 5], [30, 1, 21], [30, 3, 9]):
        lengths = np.array([[10, 0, 0], refused], dtype=np.uint32)
        store: Any = SimpleNamespace(lengths=lambda _, lengths=lengths: lengths, root="corpus")
        sequences = FittedSequences(order, store, shape=shape)
        with pytest.raises(
            DataError, match=r"document 1 of corpus .* holds 64, 20 in 2 spans: raise"
        ):
            sequences.sequence(0)


def test_equal_input_gives_equal_rows() -> None:
    tokens = np.random.default_rng(1).integers(1, 900, 500).tolist()
    first = pack(table(tokens), SequenceShape(slots=512))
    second = pack(table(tokens), SequenceShape(slots=512))
    np.testing.assert_array_equal(first.parts, second.parts)
    np.testing.assert_array_equal(first.starts, second.starts)


def test_rows_shorter_than_the_smallest_cut() -> None:
    packed = pack(table([7] * 40), SequenceShape(slots=12))
    assert int((packed.parts[:, 2] - packed.parts[:, 1]).sum()) == 280


def test_full_spans_do_not_make_packing_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no sequence has room for spans, a few are asked and no more."""
    asked = 0

    class Counted(list):
        def __getitem__(self, place):
            nonlocal asked
            asked += 1
            return super().__getitem__(place)

    found = pack_module._find

    def counting(gaps, *arguments, **keys):
        for free, sequences in enumerate(gaps):
            if sequences and not isinstance(sequences, Counted):
                gaps[free] = Counted(sequences)
        return found(gaps, *arguments, **keys)

    monkeypatch.setattr(pack_module, "_find", counting)
    count = 600
    shape = SequenceShape(slots=2048, rooms=text_room(spans=20, slots=640))
    packed = pack(table([700] * count, [1] * count, [600] * count), shape)
    assert len(packed) == count
    assert asked <= 70 * count
