"""Scores before and after tuning, from predictions that evaluations leave."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.tasks.making import ROW, reader
from tools.tasks.outcome import outcome
from train.errors import DataError
from train.scores.evaluation import Answered, TaskScore
from train.scores.page import write_predictions
from train.tasks.reader import TaskReader

TRAINING = [{**ROW, "label": int(n % 3 == 0), "word": f"{n}"} for n in range(9)]
"""The commonest answer is `yes`."""


def predicted(directory: Path, right: list[bool], *, first: int = 0) -> Path:
    """Predictions for records of which every second one is `yes`."""
    rows: list[Answered] = []
    for number, is_right in enumerate(right, first):
        truth, other = ("yes", "no") if number % 2 else ("no", "yes")
        rows.append(
            Answered(
                id=f"senses/test:{number}",
                group=f"word {number // 2}",
                asked="",
                answer=truth if is_right else other,
                right=(truth,),
                choices=("yes", "no"),
                scores=(),
                tied=(),
                counts={"accuracy": [float(is_right)]},
            )
        )
    score = TaskScore(
        task="senses",
        cluster="inference",
        held_out=None,
        estimates={},
        ties=0,
        left_out=0,
        cut=0,
        rows=rows,
    )
    write_predictions(directory, score)
    return directory


def row_of(
    read: TaskReader, tmp_path: Path, *, before: list[bool], after: list[bool], other: list[bool]
) -> dict[str, Any]:
    return outcome(
        read,
        pretrained=predicted(tmp_path / "before", before),
        finetuned=predicted(tmp_path / "after", after),
        shuffled=predicted(tmp_path / "shuffled", other),
    )


def test_a_tuned_model_is_held_against_the_best_of_three(tmp_path: Path) -> None:
    read = reader(tmp_path / "records", *TRAINING)
    before = [False] * 40
    shuffled = [n % 5 < 3 for n in range(40)]
    after = [n % 10 > 0 for n in range(40)]
    row = row_of(read, tmp_path, before=before, after=after, other=shuffled)
    scores = [row[name] for name in ("pretrained", "majority", "shuffled", "finetuned")]
    assert scores == [0.0, 0.5, 0.6, 0.9]
    assert (row["best_other"], row["kind"], row["metric"]) == ("shuffled", "follows", "accuracy")
    assert row["difference"] == pytest.approx(0.3)
    assert 0 < row["difference_low"] < 0.3 < row["difference_high"]
    assert (row["records"], row["groups"]) == (40, 20)


def test_a_model_that_knows_only_the_commonest_answer_has_gained_nothing(tmp_path: Path) -> None:
    read = reader(tmp_path / "records", *TRAINING)
    yes = [n % 2 == 1 for n in range(40)]
    row = row_of(read, tmp_path, before=[False] * 40, after=yes, other=[False] * 40)
    assert (row["best_other"], row["difference"], row["majority"]) == ("majority", 0, 0.5)


def test_of_the_choices_of_a_row_the_commonest_is_guessed(tmp_path: Path) -> None:
    """Where each row has its own, none is the commonest of all."""
    kinds = [
        (
            'answer:\n  kind: choice\n  choices: ["yes", "no"]',
            "answer:\n  kind: choice\n  choices: kinds",
        )
    ]
    rows = [{**ROW, "kinds": ["dog", f"{n}"], "label": 0, "word": f"{n}"} for n in range(9)]
    read = reader(tmp_path / "records", *rows, changes=kinds)

    def left(name: str) -> Path:
        answered = [
            Answered(
                id=f"senses/test:{n}",
                group=f"{n}",
                asked="",
                answer="cat",
                right=("dog" if n % 4 else "cat",),
                choices=("cat", "dog"),
                scores=(),
                tied=(),
                counts={"accuracy": [float(n % 4 == 0)]},
            )
            for n in range(40)
        ]
        score = TaskScore(
            task="senses", cluster="inference", held_out=None, estimates={}, ties=0, left_out=0,
            cut=0, rows=answered,
        )  # fmt: skip
        write_predictions(tmp_path / name, score)
        return tmp_path / name

    row = outcome(read, pretrained=left("a"), finetuned=left("b"), shuffled=left("c"))
    assert (row["majority"], row["finetuned"], row["best_other"]) == (0.75, 0.25, "majority")


def test_an_interval_that_is_unknown_is_null(tmp_path: Path) -> None:
    """All pairs differ alike, or all records are of one group."""
    read = reader(tmp_path / "records", *TRAINING)
    row = row_of(read, tmp_path, before=[False] * 2, after=[True] * 2, other=[False] * 2)
    assert (row["groups"], row["difference_low"], row["difference_high"]) == (1, None, None)
    assert "NaN" not in json.dumps(row)


def test_what_is_known_by_heart_is_called_recall(tmp_path: Path) -> None:
    memory = [("cluster: inference", "cluster: closed_book\nanswer_from: memory")]
    read = reader(tmp_path / "records", *TRAINING, changes=memory)
    row = row_of(read, tmp_path, before=[False] * 4, after=[True] * 4, other=[False] * 4)
    assert (row["kind"], row["cluster"]) == ("recall", "closed_book")


def test_only_records_that_all_have_answered_count(tmp_path: Path) -> None:
    read = reader(tmp_path / "records", *TRAINING)
    found = outcome(
        read,
        pretrained=predicted(tmp_path / "before", [False] * 10),
        finetuned=predicted(tmp_path / "after", [True] * 10, first=4),
        shuffled=predicted(tmp_path / "shuffled", [False] * 10, first=4),
    )
    assert found["records"] == 6
    other = predicted(tmp_path / "other", [False], first=99)
    with pytest.raises(DataError, match="senses: the evaluations have no record in common"):
        outcome(read, pretrained=other, finetuned=tmp_path / "after", shuffled=other)


def test_a_run_that_was_not_evaluated_is_named(tmp_path: Path) -> None:
    read = reader(tmp_path / "records", *TRAINING)
    there = predicted(tmp_path / "there", [True])
    with pytest.raises(DataError, match=r"before/senses.jsonl is not there: evaluate that run"):
        outcome(read, pretrained=tmp_path / "before", finetuned=there, shuffled=there)
