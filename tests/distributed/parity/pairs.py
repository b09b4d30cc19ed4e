"""Few combinations in which every pair of choices occurs, for tables too large to run whole."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

Row = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(row: Mapping[str, Any]) -> set[Pair]:
    """Every pair of choices in a row."""
    return set(combinations(row.items(), 2))


def all_pairs(factors: Mapping[str, Sequence[Any]]) -> set[Pair]:
    """Every pair of choices that there is."""
    return {
        ((first, a), (second, b))
        for first, second in combinations(factors, 2)
        for a, b in product(factors[first], factors[second])
    }


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Rows of the product that cover every pair, always the same ones.

    Greedy: the row that covers most of what is left comes next, the first in order among equals.
    """
    bits = {pair: 1 << number for number, pair in enumerate(sorted(all_pairs(factors), key=repr))}
    candidates = [
        (row, sum(bits[pair] for pair in pairs_of(row)))
        for choices in product(*factors.values())
        for row in [dict(zip(factors, choices, strict=True))]
    ]
    left = sum(bits.values())
    rows: list[Row] = []
    while left:
        best, covered = max(candidates, key=lambda candidate: (candidate[1] & left).bit_count())
        rows.append(best)
        left &= ~covered
    return rows
