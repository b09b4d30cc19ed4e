"""Tasks over public data sets, on made-up records in their schema."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.tasks.making import texts
from tests.train.tasks.public_rows import ROWS, UNLABELLED
from train.tasks.reader import TaskReader
from train.tasks.task import Task, load_tasks

TASKS = {task.name: task for task in load_tasks(["public", "in_context"])}


def read(directory: Path, task: Task, *rows: object) -> TaskReader:
    """A reader of records in parquet, whose types are those of the data sets."""
    name = task.source.splits.get("train", "train")
    pq.write_table(pa.Table.from_pylist([*rows]), directory / f"{name}.parquet")
    return TaskReader(task, directory=directory)


def test_every_task_has_its_record() -> None:
    assert {*TASKS} == {*ROWS}


@pytest.mark.parametrize("name", [*ROWS])
def test_a_record_is_asked_in_every_template(tmp_path: Path, name: str) -> None:
    row, right, choices = ROWS[name]
    task = TASKS[name]
    reader = read(tmp_path, task, row)
    assert not task.source.keep or len([*reader.records("train")]) == 1
    for number, template in enumerate(task.templates):
        [example] = reader.examples("train", template=number)
        asked = "".join(part.text for part in texts(example.context))
        assert "{" not in asked
        assert any(part.is_span for part in texts(example.context)) or template.inverted or number
        if template.inverted is None:
            assert example.answers[0] == right
            assert tuple(choice.text for choice in example.choices) == choices
            assert texts(example.document())[-1].text == f" {right}"
        else:
            assert right in asked
            assert example.answers[0] not in asked


@pytest.mark.parametrize("name", [*UNLABELLED])
def test_records_without_a_label_are_passed_over(tmp_path: Path, name: str) -> None:
    row, right, _ = ROWS[name]
    [example] = read(tmp_path, TASKS[name], UNLABELLED[name], row).examples("train")
    assert example.answers == (right,)


def test_the_first_template_puts_the_whole_input_into_the_encoder(tmp_path: Path) -> None:
    [example] = read(tmp_path, TASKS["mnli"], ROWS["mnli"][0]).examples("train")
    [span] = texts(example.context)
    assert span.is_span
    assert span.text.splitlines() == [
        "Does the premise say that the hypothesis is true?",
        "Premise: A man plays.",
        "Hypothesis: He rests.",
        "OPTIONS:",
        "yes",
        "it is impossible to say",
        "no",
        "TARGET:",
    ]


def test_a_pronoun_is_filled_before_the_end_that_is_scored(tmp_path: Path) -> None:
    name = "winograd_in_context"
    [example] = read(tmp_path, TASKS[name], ROWS[name][0]).examples("train")
    asked = [[part.text for part in texts(example.document(choice))] for choice in example.choices]
    begin = "The cup did not fit into the box because"
    assert asked == [[begin, f" The {thing}", " was too large."] for thing in ("cup", "box")]
    assert [part.is_scored for part in texts(example.document())] == [False, False, True]


def test_the_papers_sets_are_there() -> None:
    clusters: dict[str, int] = {}
    for task in TASKS.values():
        if not task.name.endswith("_in_context"):
            clusters[task.cluster] = clusters.get(task.cluster, 0) + 1
    assert clusters == {
        "inference": 9,
        "sentiment": 4,
        "paraphrase": 3,
        "coreference": 3,
        "commonsense": 3,
        "reading": 5,
        "acceptability": 1,
        "word_sense": 1,
        "question_type": 1,
        "closed_book": 2,
        "data_to_text": 2,
        "summarisation": 3,
    }
