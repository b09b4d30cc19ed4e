"""Metrics of captions, against coco-caption's own code where it is installed."""

import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from train.errors import UserError
from train.scores.captions import words
from train.scores.metric import MetricName, metric

STANFORD = [
    ("A man with a red helmet on a small moped.", "a man with a red helmet on a small moped"),
    ("A man's dog doesn't like \"it\", it's old.", "a man 's dog does n't like it it 's old"),
    ("Two dogs (a black one) are running...", "two dogs -lrb- a black one -rrb- are running"),
    ("a tennis player - hitting a ball!", "a tennis player hitting a ball"),
    ("cutting a cake w/ a knife", "cutting a cake w / a knife"),
    ("A 10 year-old at 3:30 p.m. in the U.S.", "a 10 year-old at 3:30 p.m. in the u.s."),
    ("they can't wait, for 2,000 years; cannot", "they ca n't wait for 2,000 years can not"),
    ("a stop sign at St. John's Ave.", "a stop sign at st. john 's ave."),
    ("a sink,toilet,and tub.", "a sink toilet and tub"),
    ("The girls' team wins!!", "the girls team wins !!"),
    ("a café with résumé’s", "a café with résumé 's"),
    ("it says 'Not in Service' on it.", "it says not in service on it"),
    ("rock 'n' roll, black & white", "rock 'n' roll black & white"),
    ("a car's hood.The car, and/or a 5'6\" man", "a car 's hood.the car and/or a 5 6 man"),
    ("in his '50s hat at 7-11, $5, #1, 50%", "in his '50s hat at 7-11 $ 5 # 1 50 %"),
    ("a [blurry] image of <here>", "a -lsb- blurry -rsb- image of <here>"),
    ("Mr. Smith is gonna go to http://x.com/a", "mr. smith is gon na go to http://x.com/a"),
    ("a hat--and a coat--walks  twice", "a hat and a coat walks twice"),
]
"""Captions, and what Stanford's tokenizer and coco-caption's list of punctuation leave of them."""


@pytest.mark.parametrize(("caption", "left"), STANFORD)
def test_words_are_those_of_stanfords_tokenizer(caption: str, left: str) -> None:
    assert " ".join(words(caption)) == left


def test_stanfords_tokenizer_says_so() -> None:
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = Path(tokenizer.__file__).with_name(tokenizer.STANFORD_CORENLP_3_4_1_JAR)
    if shutil.which("java") is None:
        pytest.skip("there is no Java")
    done = subprocess.run(
        [
            *("java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"),
            *("-preserveLines", "-lowerCase"),
        ],
        input="".join(f"{caption}\n" for caption, _ in STANFORD),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for line, (_, left) in zip(done.stdout.splitlines(), STANFORD, strict=True):
        found = [word for word in line.split() if word not in tokenizer.PUNCTUATIONS]
        assert " ".join(found) == left


def captions(seed: int, count: int = 40) -> tuple[list[str], list[list[str]]]:
    """Answers, and five right ones each that share words with them."""
    chance = random.Random(seed)
    vocabulary = ["a", "the", "man", "dog's", "red", "green", "rides", "wave", "park.", "big", "on"]

    def one() -> str:
        return " ".join(chance.choices(vocabulary, k=chance.randint(4, 14)))

    right = [[one() for _ in range(chance.randint(1, 5))] for _ in range(count)]
    return [chance.choice([one(), chance.choice(some)]) for some in right], right


def score(name: MetricName, answers: Sequence[str], right: Sequence[Sequence[str]]) -> float:
    found = metric(name)
    counts = np.array(found.counts(answers, right))
    return float(found.together(np.concatenate([[len(counts)], counts.sum(axis=0)])))


def cut(answers: Sequence[str], right: Sequence[Sequence[str]]) -> tuple[dict[int, list[str]], ...]:
    """As coco-caption wants them: right ones and answers by number, in words."""
    return (
        {at: [" ".join(words(each)) for each in some] for at, some in enumerate(right)},
        {at: [" ".join(words(each))] for at, each in enumerate(answers)},
    )


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_coco_caption(seed: int) -> None:
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    answers, right = captions(seed)
    given = cut(answers, right)
    expected, by_row = cider.Cider().compute_score(*given)
    assert score("cider", answers, right) == pytest.approx(expected, rel=1e-9)
    assert metric("cider").counts(answers, right) == [[pytest.approx(each)] for each in by_row]
    expected, _ = rouge.Rouge().compute_score(*given)
    assert score("caption_rouge", answers, right) == pytest.approx(expected, rel=1e-9)
    expected, _ = bleu.Bleu(4).compute_score(*given, verbose=0)
    assert score("caption_bleu", answers, right) == pytest.approx(expected[3], rel=1e-6)


def test_words_that_all_rows_have_count_nothing() -> None:
    right = [["a dog"], ["a cat"], ["a bird"]]
    counted = metric("cider").counts(["a cat", "a cat", "a"], right)
    assert [each > 0 for [each] in counted] == [False, True, False]
    # All four orders of a caption of four words and more.
    long = [["a dog runs far away"], ["the cat sleeps on it"]]
    assert metric("cider").counts(["a dog runs far away", ""], long) == [[pytest.approx(10)], [0]]


def test_rouge_takes_precision_and_recall_each_from_the_best() -> None:
    right = ["a red dog runs in the park", "dog"]
    recall, precision = 1.0, 1.0  # of "dog", and of all that is said
    assert metric("caption_rouge").count("red dog", right) == [pytest.approx(recall * precision)]
    assert metric("caption_rouge").count("", right) == [0]


@pytest.mark.long
def test_meteor_is_what_its_program_says() -> None:
    meteor = pytest.importorskip("pycocoevalcap.meteor.meteor")
    if shutil.which("java") is None:
        pytest.skip("there is no Java")
    answers, right = captions(0, 20)
    answers[0] = right[0][0]
    given = cut(answers, right)
    program = meteor.Meteor()
    expected, by_row = program.compute_score(*given)
    assert score("meteor", answers, right) == pytest.approx(expected, rel=1e-9)
    counted = metric("meteor")
    rows = np.array([[1, *each] for each in counted.counts(answers, right)])
    assert counted.together(rows) == pytest.approx(by_row, rel=1e-9)


def test_meteor_without_java_or_its_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="runs in Java, and there is none here: install a JRE"):
        metric("meteor")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="is a program of pycocoevalcap, which is not installed"):
        metric("meteor")
