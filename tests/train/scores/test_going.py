"""Rows with another's pictures, and without any."""

from dataclasses import replace

import pytest

from train.data.document import Kind
from train.data.segments import MediaSegment, Segment, TextSegment
from train.errors import DataError
from train.scores.going import Setting, blinded, shuffled
from train.tasks.example import Example


def seen(number: int) -> MediaSegment:
    return MediaSegment(kind=Kind.IMAGE, data=bytes([number]), size=(1, 1))


def asked(text: str) -> TextSegment:
    return TextSegment(text=text, is_scored=False, ends_paragraph=False)


def row(number: int, *context: Segment) -> Example:
    return Example(
        id=f"t/test:{number}", template="a", context=context, answers=("x",), group=str(number)
    )


def test_pictures_are_exchanged_and_what_is_asked_stays() -> None:
    rows = [row(number, seen(number), asked(f"{number}?"), seen(9)) for number in range(4)]
    found = shuffled(rows)
    assert [each.context for each in found] == [
        (seen((number + 2) % 4), asked(f"{number}?"), seen(9)) for number in range(4)
    ]
    assert [replace(each, context=()) for each in found] == [
        replace(each, context=()) for each in rows
    ]


def test_whole_contexts_are_exchanged_where_there_are_no_pictures_or_not_as_many() -> None:
    rows = [row(0, asked("a")), row(1, asked("b"))]
    assert [each.context for each in shuffled(rows)] == [(asked("b"),), (asked("a"),)]
    rows = [row(0, seen(0), asked("a")), row(1, seen(1), seen(2))]
    assert [each.context for each in shuffled(rows)] == [rows[1].context, rows[0].context]


def test_without_pictures() -> None:
    assert blinded(row(0, asked("a"), seen(0), asked("b"))).context == (asked("a"), asked("b"))
    assert blinded(row(0, seen(0))).context == ()
    with pytest.raises(DataError, match="t/test:0: shows no item: ask its task without --blind"):
        blinded(row(0, asked("a")))
    assert Setting(is_blind=True).name == "test-template-0-blind"
