"""Verdicts, held against what was done."""

import pytest

from tests.tools.chaos.making import attempt, fault
from tools.chaos.drawing import Kind
from tools.chaos.scoring import score
from tools.keep.attempt import Kind as Said


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Kind.RANK_DEAD, "dead"),
        (Kind.RANK_STOPPED, "stopped"),
        (Kind.NODE_DEAD, "dead"),
        (Kind.NOT_FINITE, "hardware"),
    ],
)
def test_kind_rank_and_node_have_to_be_right(kind: Kind, said: Said) -> None:
    right = score(fault(kind), [attempt(0, 1, said)])
    assert (right.is_right, right.wrong_but_sure) == (True, 0)
    assert right.sentences == [f"{said}: it is"]
    for wrong in (
        attempt(0, 1, "stuck"),
        attempt(0, 1, said, rank=0),
        attempt(0, 1, said, rank=None),
        attempt(0, 1, said, node="node1"),
    ):
        found = score(fault(kind), [wrong])
        assert (found.is_right, found.wrong_but_sure) == (False, 1)
    unsure = score(fault(kind), [attempt(0, 1, said, rank=0, is_sure=False)])
    assert (unsure.is_right, unsure.wrong_but_sure) == (False, 0)


def test_no_verdict_and_one_too_many() -> None:
    missing = score(fault(Kind.RANK_DEAD), [])
    assert (missing.is_right, missing.wrong_but_sure) == (False, 0)
    twice = score(fault(Kind.RANK_DEAD), [attempt(0, 1), attempt(1, 2, rank=0)])
    assert (twice.is_right, twice.wrong_but_sure) == (False, 1)


def test_nothing_ends_where_a_store_is_frozen() -> None:
    frozen = fault(Kind.STORE_FROZEN, rank=None, node=None)
    assert score(frozen, []).is_right
    ended = score(frozen, [attempt(0, 1)])
    assert (ended.is_right, ended.wrong_but_sure) == (False, 1)
