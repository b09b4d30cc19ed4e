"""What counts of answers, against the official definitions."""

import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from train.scores.metric import metric, normalised, spoken


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, sat.", "cat sat"),
        ("A man and an ant: the theatre", "man and ant theatre"),
        ("U.S.A.", "usa"),
        ("the", ""),
    ],
)
def test_normalises_as_squad(text: str, normal: str) -> None:
    assert normalised(text) == normal


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("the Cat", ["cat"], 1, 1),
        ("a black cat", ["cat", "the black cat"], 1, 1),
        ("black cat", ["cat"], 0, 2 / 3),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("dog", ["cat"], 0, 0),
        ("", ["the"], 1, 1),
        ("", ["cat"], 0, 0),
    ],
)
def test_exact_match_and_f1(answer: str, right: list[str], exact: float, f1: float) -> None:
    assert metric("exact_match").count(answer, right) == [exact]
    assert metric("f1").count(answer, right) == [pytest.approx(f1)]


def test_accuracy_is_letter_by_letter() -> None:
    assert metric("accuracy").count(" Fe ", ["Fe"]) == [1]
    assert metric("accuracy").count("fe", ["Fe"]) == [0]


def test_rouge_is_the_best_of_what_is_right() -> None:
    right = ["a library of utilities", "tools for printing"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = max(scorer.score(each, "tool for prints")["rougeL"].fmeasure for each in right)
    assert metric("rouge").count("tool for prints", right) == [expected]


def test_bleu_is_of_all_rows_together() -> None:
    answers = ["the cat sat on the mat", "a dog", "it rains in the city today"]
    right = ["the cat is on the mat", "a dog barks", "it rains in this city today"]
    counted = metric("bleu")
    counts = np.array([counted.count(a, [r]) for a, r in zip(answers, right, strict=True)])
    sums = np.concatenate([[len(counts)], counts.sum(axis=0)])
    expected = BLEU().corpus_score(answers, [right]).score / 100
    assert float(counted.together(sums)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  Hello,   World! ", "hello world"),
        ("I'm sorry, it won't do.", "i am sorry it will not do"),
        ("[beep] thank you <noise>", "thank you"),
        ("one\ttwo\nthree", "one two three"),
        ("...", ""),
    ],
)
def test_words_as_they_are_compared(text: str, words: str) -> None:
    assert spoken(text) == words


def edits(wanted: list[str], said: list[str]) -> int:
    """Fewest words to change, leave out or put in: by trying all three everywhere."""
    if not wanted or not said:
        return len(wanted) + len(said)
    kept = edits(wanted[1:], said[1:]) + (wanted[0] != said[0])
    return min(kept, edits(wanted[1:], said) + 1, edits(wanted, said[1:]) + 1)


def test_word_errors_are_those_of_brute_force() -> None:
    """Of all rows together: longer ones weigh more."""
    chance = random.Random(0)
    counted = metric("word_accuracy")
    sums, errors, words = np.zeros(4), 0, 0
    for _ in range(60):
        wanted = [chance.choice("abc") for _ in range(chance.randint(1, 5))]
        said = [chance.choice("abc") for _ in range(chance.randint(0, 5))]
        counts = counted.count(" ".join(said), [" ".join(wanted)])
        assert counts == [float(wanted == said), edits(wanted, said), len(wanted)]
        sums += [1, *counts]
        errors, words = errors + edits(wanted, said), words + len(wanted)
    assert float(counted.together(sums)) == 1 - errors / words


def test_word_accuracy_takes_the_nearest_of_what_is_right() -> None:
    counted = metric("word_accuracy")
    assert counted.count("press one", ["press two", "Press 1, or press one."]) == [0, 1, 2]
    assert counted.count("", ["one two"]) == [0, 2, 2]
    assert counted.count("a b c d", ["a"]) == [0, 3, 1]
    assert float(counted.together(np.array([1, 0, 3, 1]))) == -2
    assert counted.count("a word", ["..."]) == [0, 2, 0]
