"""Faults that are drawn."""

from collections import Counter
from itertools import islice

import pytest

from tools.chaos.drawing import Kind, drawn


@pytest.mark.parametrize("seed", range(20))
def test_no_kind_makes_more_than_a_third(seed: int) -> None:
    draws = [*islice(drawn(seed), 31)]
    assert {draw.kind for draw in draws[:5]} == set(Kind)
    for count in range(5, len(draws) + 1):
        kinds = Counter(draw.kind for draw in draws[:count])
        assert max(kinds.values()) <= count / 3, (count, kinds)
    assert all(0 <= draw.choice < 1 for draw in draws)


def test_a_seed_draws_the_same_again_and_another_does_not() -> None:
    first, again, other = ([*islice(drawn(seed), 15)] for seed in (3, 3, 4))
    assert first == again
    assert first != other
