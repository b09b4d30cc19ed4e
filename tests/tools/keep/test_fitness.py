"""Which nodes the try-out finds unfit, over reports made up; and who is in a pair with whom."""

import itertools
import json

import pytest

from tools.keep.fitness import Doubt, Report, reports_of, unfit

NODES = ("node1", "node2", "node3")


def report(products: float = 100.0, pairs: float = 10.0, clock: float = 1e9) -> Report:
    return Report(rates={"matrix products": products, "all-reduce": pairs}, clock=clock)


def test_nodes_that_are_alike() -> None:
    reports = {"node1": report(71), "node2": report(100), "node3": report(200, pairs=8)}
    assert unfit(reports, NODES) == {}


def test_a_node_that_is_slow() -> None:
    reports = {"node1": report(), "node2": report(69, pairs=3), "node3": report()}
    why = "has 0.69 of the median in matrix products, has 0.30 of the median in all-reduce"
    assert unfit(reports, NODES) == {"node2": Doubt(0.3, why)}


@pytest.mark.parametrize(("offset", "where"), [(-9.0, "behind"), (9.0, "ahead")])
def test_a_clock_that_is_wrong(offset: float, where: str) -> None:
    reports = {"node1": report(), "node2": report(), "node3": report(clock=1e9 + offset)}
    assert unfit(reports, NODES) == {"node3": Doubt(0.7, f"has a clock 9 s {where}")}


def test_a_node_that_hangs() -> None:
    """The others wait for it in vain: they have said what they do alone."""
    alone = Report(rates={"matrix products": 100.0})
    found = unfit({"node1": alone, "node3": alone}, NODES)
    assert found == {"node2": Doubt(0.0, "did not end its try-out")}


def test_where_nothing_was_measured_nobody_is_to_blame() -> None:
    assert unfit({}, NODES) == {}


def test_what_nodes_print_in_parts_among_other_things() -> None:
    lines = [
        json.dumps({"node": "node1", "rates": {"memory": 2.0}, "clock": None}),
        "srun: error: something else", "[]", '{"node": "node1", "rates": {"disk": "x"}}', "{",
        json.dumps({"node": "node1", "rates": {"all-reduce": 3.0}, "clock": 5.0}),
        json.dumps({"node": "node2", "rates": {"memory": 1.0}, "clock": None}),
    ]  # fmt: skip
    assert reports_of(lines) == {
        "node1": Report(rates={"memory": 2.0, "all-reduce": 3.0}, clock=5.0),
        "node2": Report(rates={"memory": 1.0}),
    }


@pytest.mark.parametrize("num_nodes", range(2, 12))
def test_each_node_is_in_two_pairs_and_in_one_at_a_time(num_nodes: int) -> None:
    from tools.keep.trying import rounds

    found = rounds(num_nodes)
    pairs = list(itertools.chain.from_iterable(found))
    assert len(set(map(frozenset, pairs))) == len(pairs)
    for node in range(num_nodes):
        assert sum(node in pair for pair in pairs) == (1 if num_nodes == 2 else 2)
    for each in found:
        nodes = list(itertools.chain.from_iterable(each))
        assert len(set(nodes)) == len(nodes)
