"""Which nodes ranks run on: every small world, by brute force."""

import itertools
from collections.abc import Iterator

import pytest

from tests.tools.keep.test_deciding import attempt
from tools.keep.attempt import Attempt, Kind
from tools.keep.deciding import Decision, decide
from tools.keep.fitness import Doubt
from tools.keep.placing import Allocation, placed
from train.exit_status import ExitStatus

NODES: tuple[str, ...] = ("node1", "node2", "node3", "node4")
STATES = ("good", "slow", "tried", "wrong", "gone")
KINDS: dict[str, Kind] = {"slow": "slow", "wrong": "hardware", "gone": "dead"}


def after(states: tuple[str, ...], *, keeper: str = "me") -> list[Attempt]:
    """An attempt for each node of which something is known."""
    return [
        spoiled(node, KINDS[state], gone=state == "gone", keeper=keeper)
        for node, state in zip(NODES, states, strict=True)
        if state in KINDS
    ]


def spoiled(
    node: str, kind: Kind, *, gone: bool = False, keeper: str = "me", is_sure: bool = True
) -> Attempt:
    before = attempt(kind, first=0, last=9)
    return before.model_copy(
        update={
            "keeper": keeper,
            "gone": [node] if gone else [],
            "verdict": before.verdict.model_copy(update={"node": node, "is_sure": is_sure}),
        }
    )


def worlds() -> Iterator[tuple[tuple[str, ...], int, bool, frozenset[int]]]:
    """States of four nodes, how many are wanted, whether fewer will do, and what has no layout."""
    sizes = [frozenset[int](), frozenset({1}), frozenset({2, 3})]
    yield from itertools.product(
        itertools.product(STATES, repeat=len(NODES)), range(1, 5), (False, True), sizes
    )


def score(chosen: tuple[str, ...], states: dict[str, str], *, shrinks: bool) -> tuple[int, ...]:
    """How good a choice is, best lowest: right, then many, then quick, then first in order."""
    of = [states[node] for node in chosen]
    num_wrong, num_slow = of.count("wrong"), of.count("slow") + of.count("tried")
    order = tuple(NODES.index(node) for node in chosen)
    return (num_wrong > 0 if shrinks else 0, -len(chosen), num_wrong, num_slow, *order)


def best(
    states: dict[str, str], wanted: int, may_shrink: bool, impossible: frozenset[int]
) -> tuple[str, ...] | None:
    """Of all choices of nodes the best that is allowed."""
    allowed = [
        chosen
        for size in range(1 if may_shrink else wanted, wanted + 1)
        if size not in impossible
        for chosen in itertools.combinations(NODES, size)
        if all(states[node] != "gone" for node in chosen)
    ]
    return min(allowed, key=lambda chosen: score(chosen, states, shrinks=may_shrink), default=None)


def test_every_choice_of_four_nodes() -> None:
    for states, wanted, may_shrink, impossible in worlds():
        named = dict(zip(NODES, states, strict=True))
        if wanted in impossible and not may_shrink:
            continue  # what is wanted is what the run was started with
        allocation = Allocation(
            nodes=NODES, num_wanted=wanted, ranks_per_node=2, may_shrink=may_shrink,
            impossible=impossible, keeper="me",
            tried={node: Doubt(0.5, "is slow") for node in NODES if named[node] == "tried"},
        )  # fmt: skip
        attempts = after(states)
        found = placed(attempts, allocation)
        expected = best(named, wanted, may_shrink, impossible)
        assert (None if found is None else found.nodes) == expected, (states, wanted, may_shrink)
        if found is not None:
            assert set(found.left_out) == set(NODES) - set(found.nodes)
            assert set(found.in_spite) == {n for n in found.nodes if named[n] != "good"}


@pytest.mark.parametrize("can_requeue", [False, True])
def test_a_dead_node_s_place_is_taken_or_the_job_goes_back(can_requeue: bool) -> None:
    dead = spoiled("node2", "dead", gone=True).model_copy(update={"nodes": ["node1", "node2"]})

    def after_it(
        nodes: int, *, may_shrink: bool = False, impossible: tuple[int, ...] = ()
    ) -> Decision:
        return decide(
            [dead],
            can_requeue=can_requeue,
            allocation=Allocation(
                nodes=NODES[:nodes], num_wanted=2, ranks_per_node=2, may_shrink=may_shrink,
                impossible=frozenset(impossible), keeper="me",
            ),
        )  # fmt: skip

    spare = after_it(3)
    assert (spare.action, spare.placement and spare.placement.nodes) == (
        "again",
        ("node1", "node3"),
    )
    assert spare.reason == "node2 does not answer: on node1, node3"
    fewer = after_it(2, may_shrink=True)
    assert (fewer.action, fewer.placement and fewer.placement.nodes) == ("again", ("node1",))
    for none in (after_it(2), after_it(2, may_shrink=True, impossible=(1,))):
        assert none.action == ("requeue" if can_requeue else "end")
        assert none.status == ExitStatus.FAULT
        assert none.reason == "too few of the job's nodes answer"


def test_what_nodes_did_under_another_keeper() -> None:
    """A requeued job has them back, perhaps repaired; what computed wrongly is doubted still."""
    allocation = Allocation(nodes=NODES, num_wanted=3, ranks_per_node=2, keeper="me")
    earlier = after(("gone", "slow", "wrong", "good"), keeper="another")
    found = placed(earlier, allocation)
    assert found is not None
    assert found.nodes == ("node1", "node2", "node4")
    assert found.left_out == {"node3": "computed wrongly"}


def test_of_doubtful_nodes_the_worst_is_left_out() -> None:
    tried = {
        "node1": Doubt(0.6, "slow"),
        "node2": Doubt(0.0, "failed"),
        "node3": Doubt(0.4, "slow"),
    }
    for num_wanted, nodes in (
        (1, ("node4",)), (2, ("node1", "node4")), (3, ("node1", "node3", "node4"))
    ):  # fmt: skip
        allocation = Allocation(nodes=NODES, num_wanted=num_wanted, ranks_per_node=2, tried=tried)
        found = placed([], allocation)
        assert found is not None
        assert found.nodes == nodes
        assert found.left_out["node2"] == "failed"


def test_no_node_is_left_out_on_suspicion() -> None:
    allocation = Allocation(nodes=NODES, num_wanted=3, ranks_per_node=2, keeper="me")
    unsure = [spoiled("node1", kind, is_sure=False) for kind in ("slow", "hardware")]
    found = placed(unsure, allocation)
    assert found is not None
    assert found.nodes == NODES[:3]


def test_what_must_not_be_started_again_is_not_started_elsewhere() -> None:
    allocation = Allocation(nodes=NODES, num_wanted=3, ranks_per_node=2, keeper="me")
    wrong = attempt("user error", classes=("ConfigError", "UserError"), error="ConfigError: lr")
    decision = decide([wrong], can_requeue=True, allocation=allocation)
    assert (decision.action, decision.placement) == ("end", None)
