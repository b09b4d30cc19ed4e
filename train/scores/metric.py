"""How answers count: each row by itself, and all rows together."""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from typing_extensions import override

from train.scores.bleu import Bleu
from train.scores.captions import CaptionBleu, CaptionRouge, Cider
from train.scores.measure import Best, Floats, Metric
from train.scores.meteor import Meteor
from train.scores.visual_questions import VqaAccuracy

MetricName = Literal[
    "accuracy", "exact_match", "f1", "rouge", "bleu", "word_accuracy", "vqa_accuracy",
    "cider", "caption_bleu", "caption_rouge", "meteor",
]  # fmt: skip

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = set(string.punctuation)


class Accuracy(Best):
    """Whether the text is the right one, letter by letter."""

    @override
    def value(self, answer: str, right: str) -> float:
        return float(answer.strip() == right.strip())


class ExactMatch(Best):
    """Whether it is the right one but for case, punctuation, articles and spaces.

    Source: SQuAD's evaluation script, v1.1.
    """

    @override
    def value(self, answer: str, right: str) -> float:
        return float(normalised(answer) == normalised(right))


class F1(Best):
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


class Rouge(Best):
    """ROUGE-L's F-measure with Porter's stemmer, by Google's `rouge-score`."""

    @override
    def value(self, answer: str, right: str) -> float:
        return float(_rouge().score(right, answer)["rougeL"].fmeasure)


class WordAccuracy(Metric):
    """One less the word error rate of all rows together, by `jiwer`; below 0 where much is made up.

    What is counted of a row is of the right answer of which the smallest share is wrong: whether
    all of it is right, words that are substituted, left out or put in, and its words. Both are
    normalised by `jiwer`'s `wer_standardize` (lower case, contractions in full, nothing in square
    or pointed brackets, single spaces), and without punctuation.
    """

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        found = [_word_errors(answer, each) for each in right]
        errors, words = min(found, key=lambda each: (each[0] / max(1, each[1]), each[0]))
        return [float(errors == 0), errors, words]

    @override
    def together(self, counts: Floats) -> Floats:
        return 1 - counts[..., 2] / np.maximum(1, counts[..., 3])


def metric(name: MetricName) -> Metric:
    """The metric of this name.

    Raises:
        UserError: it runs a program that is not there.
    """
    kinds: dict[MetricName, type[Metric]] = {
        "accuracy": Accuracy,
        "exact_match": ExactMatch,
        "f1": F1,
        "rouge": Rouge,
        "bleu": Bleu,
        "word_accuracy": WordAccuracy,
        "vqa_accuracy": VqaAccuracy,
        "cider": Cider,
        "caption_bleu": CaptionBleu,
        "caption_rouge": CaptionRouge,
        "meteor": Meteor,
    }
    return kinds[name]()


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces.

    Source: `normalize_answer` of SQuAD's evaluation script.
    """
    kept = "".join(sign for sign in text.lower() if sign not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def spoken(text: str) -> str:
    """Words as `WordAccuracy` compares them, between single spaces."""
    [words] = _standard()([text])
    return " ".join(words)


def _word_errors(answer: str, right: str) -> tuple[int, int]:
    """Words that are wrong, and words of what is right."""
    from jiwer import process_words

    said, wanted = spoken(answer), spoken(right)
    if not wanted:
        return len(said.split()), 0
    found = process_words(wanted, said)
    return found.substitutions + found.deletions + found.insertions, len(wanted.split())


@functools.cache
def _standard() -> Any:
    """`jiwer.transformations.wer_standardize`, and punctuation goes."""
    import jiwer

    return jiwer.Compose(
        [
            jiwer.ToLowerCase(),
            jiwer.ExpandCommonEnglishContractions(),
            jiwer.RemoveKaldiNonWords(),
            jiwer.RemovePunctuation(),
            jiwer.RemoveWhiteSpace(replace_by_space=True),
            jiwer.RemoveMultipleSpaces(),
            jiwer.Strip(),
            jiwer.ReduceToListOfListOfWords(),
        ]
    )


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # its import takes a second

    return RougeScorer(["rougeL"], use_stemmer=True)
