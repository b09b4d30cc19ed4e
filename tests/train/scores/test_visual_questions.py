"""VQA's accuracy and normalisation, against their definition."""

import random

import pytest

from train.scores.metric import metric
from train.scores.visual_questions import normalised


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Dog.", "dog"),
        ("two dogs and a cat", "2 dogs and cat"),
        ("None", "0"),
        ("it isnt", "it isn't"),
        ("couldn'tve", "couldn't've"),
        ("he's", "he's"),
        ("1,000", "1000"),
        ("1,000 red-haired", "1000 redhaired"),
        ("red-haired", "red haired"),
        ("red, white", "red white"),
        ("yes/no", "yes no"),
        ("3.5 p.m.", "3.5 pm"),
        ("what?!", "what"),
        ("an  apple\n", "apple"),
    ],
)
def test_normalises_as_the_official_script(text: str, normal: str) -> None:
    assert normalised(text) == normal


@pytest.mark.parametrize(
    ("same", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)]
)
def test_a_third_for_each_who_says_the_same(same: int, accuracy: float) -> None:
    people = ["red"] * same + [f"other {number}" for number in range(10 - same)]
    assert metric("vqa_accuracy").count("Red!", people) == [pytest.approx(accuracy)]


def test_it_is_the_mean_over_who_is_left_out() -> None:
    chance = random.Random(0)
    for _ in range(200):
        people = [chance.choice(["1", "one", "2", "a dog", "dog", "none"]) for _ in range(10)]
        said = chance.choice(["one", "2", "The dog.", "0", "cat"])
        if len({*people}) == 1:
            continue
        given = [normalised(each) for each in people]
        left = [given[:at] + given[at + 1 :] for at in range(10)]
        expected = sum(min(1, some.count(normalised(said)) / 3) for some in left) / 10
        assert metric("vqa_accuracy").count(said, people) == [pytest.approx(expected)]


def test_where_all_say_the_same_nothing_is_normalised() -> None:
    assert metric("vqa_accuracy").count(" two\n", ["two"] * 10) == [1]
    assert metric("vqa_accuracy").count("2", ["two"] * 10) == [0]
