"""The unigram baseline against its definition, token by token."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpora import write_splits
from tests.train.runs import TINY_RUN
from train.build import build_collator, build_plan
from train.config import RunConfig
from train.config_files import load
from train.errors import DataError
from train.wrap_up import look_at_data, unigram_cross_entropy


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


def test_a_validation_set_that_scores_nothing_names_its_key(tmp_path: Path) -> None:
    documents: dict[str, list[dict[str, Any]]] = {}
    for split, scored in (("train", 1), ("validation", 0)):
        tokens = np.full(80, 7, np.uint16)
        segments = np.array([[0, 80, scored]], np.int32)
        documents[split] = [{"id": f"{split}/0", "tokens": tokens, "segments": segments}] * 9
    root = write_splits(tmp_path / "corpus", documents, shard_bytes=4096)
    paths = f"data.corpus={root}", f"run_directory={tmp_path / 'run'}"
    config = load(RunConfig, [str(TINY_RUN), *paths, "data.pack=fit"])
    (tmp_path / "run").mkdir()
    plan = build_plan(config)
    with pytest.raises(
        DataError, match=r"validation.sequences: the first 7 of .*corpus hold no tok"
    ):
        look_at_data(config, plan, build_collator(config, plan.sources.special))


def test_a_validation_set_that_scores_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="scores nothing"):
        unigram_cross_entropy(np.ones(4, dtype=np.int64), np.array([], dtype=np.int64))
