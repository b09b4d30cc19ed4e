"""Standard errors against plain formulas, and against what happens when samples are drawn anew."""

import math

import numpy as np
import pytest

from train.scores.interval import Estimate, difference, estimate
from train.scores.metric import metric

MEAN = metric("exact_match")


def column(values: np.ndarray) -> np.ndarray:
    return values.astype(float)[:, None]


def known(found: Estimate) -> tuple[float, float]:
    assert found.interval is not None
    return found.interval


def test_of_single_rows() -> None:
    values = np.random.default_rng(0).random(50)
    found = estimate(MEAN, column(values))
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert (found.rows, found.groups) == (50, 50)


def test_of_groups() -> None:
    """Miller's clustered error, with as many groups less one in place of as many."""
    random = np.random.default_rng(1)
    values, groups = random.random(60), np.repeat(np.arange(20), 3)
    centred = values - values.mean()
    cross = sum(
        centred[i] * centred[j] for i in range(60) for j in range(60) if groups[i] == groups[j]
    )
    expected = math.sqrt(cross) / 60 * math.sqrt(20 / 19)
    found = estimate(MEAN, column(values), [str(group) for group in groups])
    assert found.standard_error == pytest.approx(expected)
    assert found.groups == 20


def test_of_pairs() -> None:
    random = np.random.default_rng(2)
    there = random.random(40)
    here = there + random.normal(0.1, 0.05, 40)
    found = difference(MEAN, column(here), column(there))
    gaps = here - there
    assert found.value == pytest.approx(gaps.mean())
    assert found.standard_error == pytest.approx(gaps.std(ddof=1) / math.sqrt(40))
    # What pairs see, two samples apart do not.
    apart = math.hypot(*(estimate(MEAN, column(each)).standard_error for each in (here, there)))
    assert found.standard_error < apart / 3


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Rows of a group share most of their luck; taken for single rows they would promise too much.

    1,000 samples of 12 groups of uneven size.
    """
    random = np.random.default_rng(3)
    sizes = random.integers(1, 6, 12)
    groups = [str(group) for group in np.repeat(np.arange(12), sizes)]
    held = {"grouped": 0, "single": 0}
    for _ in range(1000):
        shared = np.repeat(random.normal(0, 1, 12), sizes)
        counts = column(shared + random.normal(0, 0.3, len(groups)))
        for name, of in (("grouped", groups), ("single", None)):
            low, high = known(estimate(MEAN, counts, of))
            held[name] += low <= 0 <= high
    assert 920 <= held["grouped"] <= 980
    assert held["single"] < 850


def test_the_visible_difference_is_seen_as_often_as_it_says() -> None:
    random = np.random.default_rng(4)
    spread, seen = 1 / math.sqrt(100), 0
    true = (1.984 + 0.8416) * spread  # of unit variance
    for _ in range(1000):
        found = estimate(MEAN, column(random.normal(true, 1, 100)))
        assert found.visible == pytest.approx(2.8256 * found.standard_error, rel=1e-3)
        seen += known(found)[0] > 0
    assert 760 <= seen <= 840


def test_one_group_says_nothing() -> None:
    found = estimate(MEAN, column(np.array([1, 0, 1])), ["a", "a", "a"])
    assert math.isnan(found.standard_error)
    assert found.interval is None


def test_bleu_has_an_error_too() -> None:
    counted = metric("bleu")
    words = ["the", "kernel", "maps", "a", "page", "of", "memory", "when", "the", "driver", "asks"]
    random = np.random.default_rng(5)
    rows = []
    for _ in range(30):
        text = " ".join(random.choice(words, 8))
        noisy = " ".join(w if random.random() < 0.8 else "bus" for w in text.split())
        rows.append(counted.count(noisy, [text]))
    counts = np.array(rows)
    found = estimate(counted, counts)
    # Against drawing rows anew.
    drawn = [estimate(counted, counts[random.integers(0, 30, 30)]).value for _ in range(200)]
    assert found.standard_error == pytest.approx(float(np.std(drawn)), rel=0.25)


def test_where_all_is_wrong_some_may_still_be_right() -> None:
    low, high = known(estimate(MEAN, column(np.zeros(20))))
    assert low == 0
    # With this chance, 20 of 20 are wrong in 2.5 of 100 samples.
    assert (1 - high) ** 20 == pytest.approx(0.025)
    assert estimate(MEAN, column(np.ones(20))).interval == (1 - high, 1)


@pytest.mark.parametrize("there", [0.0, 0.25, 1.0])
def test_of_pairs_that_all_differ_alike_no_interval_is_known(there: float) -> None:
    same = difference(MEAN, column(np.ones(20)), column(np.full(20, there)))
    assert (same.value, same.standard_error, same.interval) == (1 - there, 0, None)
    assert math.isnan(same.visible)
    halves = estimate(MEAN, column(np.tile([0.0, 1.0], 10)), [f"{n // 2}" for n in range(20)])
    assert (halves.value, halves.interval) == (0.5, None)
