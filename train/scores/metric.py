"""How answers count: each row by itself, and all rows together."""

import functools
import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import override

Floats = npt.NDArray[np.float64]
MetricName = Literal["accuracy", "exact_match", "f1", "rouge", "bleu"]

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = set(string.punctuation)
_BLEU_ORDER: Final = 4


class Metric(ABC):
    """A number for some rows, made of what is counted in each."""

    @abstractmethod
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        """What counts of one row.

        Args:
            answer: what the model said.
            right: the answers that are right, at least one.
        """

    @abstractmethod
    def together(self, counts: Floats) -> Floats:
        """[...] from 0 to 1, of [..., k] counts of rows that are added up, with their number first.

        Args:
            counts: sums over rows of what `count` gives, behind the number of rows.
        """


class Mean(Metric):
    """The mean of a value a row, the best over the answers that are right."""

    @abstractmethod
    def value(self, answer: str, right: str) -> float:
        """From 0 to 1."""

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        return [max(self.value(answer, each) for each in right)]

    @override
    def together(self, counts: Floats) -> Floats:
        return counts[..., 1] / counts[..., 0]


class Accuracy(Mean):
    """Whether the text is the right one, letter by letter."""

    @override
    def value(self, answer: str, right: str) -> float:
        return float(answer.strip() == right.strip())


class ExactMatch(Mean):
    """Whether it is the right one but for case, punctuation, articles and spaces.

    Source: SQuAD's evaluation script, v1.1.
    """

    @override
    def value(self, answer: str, right: str) -> float:
        return float(normalised(answer) == normalised(right))


class F1(Mean):
    """Harmonic mean of precision and recall of words, as many times as they occur.

    Where one side has no words, it is whether the other has none (SQuAD v2.0).

    Source: SQuAD's evaluation scripts, v1.1 and v2.0.
    """

    @override
    def value(self, answer: str, right: str) -> float:
        here, there = normalised(answer).split(), normalised(right).split()
        if not here or not there:
            return float(here == there)
        common = sum((Counter(here) & Counter(there)).values())
        return 2 * common / (len(here) + len(there))


class Rouge(Mean):
    """ROUGE-L's F-measure with Porter's stemmer, by Google's `rouge-score`."""

    @override
    def value(self, answer: str, right: str) -> float:
        return float(_rouge().score(right, answer)["rougeL"].fmeasure)


class Bleu(Metric):
    """BLEU of all rows together, by `sacrebleu`: n-grams are counted over rows before they divide.

    Texts are cut into words as `sacrebleu` does by default (13a).
    """

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        found = _bleu().sentence_score(answer, list(right))
        return [*found.counts, *found.totals, found.sys_len, found.ref_len]

    @override
    def together(self, counts: Floats) -> Floats:
        rows = counts.reshape(-1, counts.shape[-1])[:, 1:]
        return np.array([_bleu_of(row) for row in rows]).reshape(counts.shape[:-1])


def metric(name: MetricName) -> Metric:
    """The metric of this name."""
    kinds = {
        "accuracy": Accuracy,
        "exact_match": ExactMatch,
        "f1": F1,
        "rouge": Rouge,
        "bleu": Bleu,
    }
    return kinds[name]()


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces.

    Source: `normalize_answer` of SQuAD's evaluation script.
    """
    kept = "".join(sign for sign in text.lower() if sign not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # its import takes a second

    return RougeScorer(["rougeL"], use_stemmer=True)


@functools.cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)  # which single sentences want; counts are the same without


def _bleu_of(counts: Floats) -> float:
    from sacrebleu.metrics.bleu import BLEU

    n = _BLEU_ORDER
    whole = [int(count) for count in counts]
    found = BLEU.compute_bleu(
        correct=whole[:n],
        total=whole[n : 2 * n],
        sys_len=whole[2 * n],
        ref_len=whole[2 * n + 1],
        smooth_method="exp",
        effective_order=False,
        max_ngram_order=n,
    )
    return found.score / 100
