"""The unigram baseline against its definition, token by token."""

import math

import numpy as np
import pytest

from train.wrap_up import unigram_cross_entropy


def test_equals_the_definition() -> None:
    random = np.random.default_rng(0)
    corpus = random.integers(0, 7, size=500)
    targets = random.integers(0, 9, size=60)
    counts = np.bincount(corpus, minlength=9)

    expected = 0.0
    for target in targets:
        occurrences = sum(1 for token in corpus if token == target)
        expected -= math.log((occurrences + 1) / (len(corpus) + 9)) / len(targets)

    assert unigram_cross_entropy(counts, targets) == pytest.approx(expected, rel=1e-12)


def test_without_a_corpus_every_token_costs_the_logarithm_of_the_vocabulary() -> None:
    cost = unigram_cross_entropy(np.zeros(8192, dtype=np.int64), np.array([3, 8191]))
    assert cost == pytest.approx(math.log(8192), rel=1e-12)


def test_a_validation_set_that_scores_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="scores nothing"):
        unigram_cross_entropy(np.ones(4, dtype=np.int64), np.array([], dtype=np.int64))
