"""Which records, which templates, which demonstrations."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.tasks.making import ROW, SENSES, reader, task, texts, written
from train.errors import DataError
from train.tasks.protocol import PROTOCOLS, Protocol
from train.tasks.reader import TaskReader

ROWS = [{**ROW, "premise": f"Premise {n}.", "word": f"{n}", "label": n % 2} for n in range(40)]


def ids(protocol: Protocol, read: TaskReader, seed: int = 0) -> list[str]:
    return [example.id for example in protocol.examples(read, "train", seed=seed)]


def test_caps_draw_records_that_depend_on_the_seed_alone(tmp_path: Path) -> None:
    read = reader(tmp_path, *ROWS)
    capped = replace(PROTOCOLS["multitask"], most_records=10)
    one, again, other = ids(capped, read), ids(capped, read), ids(capped, read, seed=1)
    assert len({*one}) == 10
    assert one == again != other
    assert len(ids(PROTOCOLS["multitask"], read)) == 40


def test_small_tasks_are_gone_through_again_where_all_are_to_count_alike(tmp_path: Path) -> None:
    read = reader(tmp_path, *ROWS)
    even = replace(PROTOCOLS["multitask"], most_records=100, is_even=True)
    assert sorted(Counter(ids(even, read)).values()) == [2] * 20 + [3] * 20
    assert len({*ids(replace(even, most_records=10), read)}) == 10
    written(tmp_path, *ROWS[:7], split="validation")
    assert len([*even.examples(read, "validation")]) == 7


def test_the_first_template_or_any(tmp_path: Path) -> None:
    read = reader(tmp_path, *ROWS)
    first, any_ = (
        Counter(e.template for e in PROTOCOLS[name].examples(read, "train"))
        for name in ("multitask", "instruction")
    )
    assert first == {"first": 40}
    assert {*any_} == {"first", "backwards"}
    assert min(any_.values()) > 8


def cluster(directory: Path, name: str) -> TaskReader:
    directory = directory / name
    directory.mkdir()
    return TaskReader(task(directory, SENSES, [("cluster: inference", f"cluster: {name}")]))


def test_held_out_clusters_take_their_like_with_them(tmp_path: Path) -> None:
    readers = [cluster(tmp_path, name) for name in ("inference", "paraphrase", "topic")]
    trained = Protocol(held_out=frozenset({"inference"})).trained(readers)
    assert [each.task.cluster for each in trained] == ["topic"]
    trained = Protocol(held_out=frozenset({"topic"})).trained(readers)
    assert [each.task.cluster for each in trained] == ["inference", "paraphrase"]
    with pytest.raises(DataError, match="no task is of the cluster topics"):
        Protocol(held_out=frozenset({"topics"})).trained(readers)
    with pytest.raises(DataError, match="no task is left to train on"):
        Protocol(held_out=frozenset({"topic", "inference"})).trained(readers)


@pytest.mark.parametrize("count", [1, 4])
def test_demonstrations_are_other_records_of_training(tmp_path: Path, count: int) -> None:
    read = reader(tmp_path, *ROWS[:6])
    written(tmp_path, *ROWS[30:33], split="test")
    shown = Protocol(demonstrations=count)
    for split in ("train", "test"):
        for example in shown.examples(read, split):
            premises = [part.text.split("\n")[0] for part in texts(example.context) if part.is_span]
            assert len({*premises}) == count + 1
            assert {*premises[:-1]} <= {row["premise"] for row in ROWS[:6]}
            assert not any(part.is_scored for part in texts(example.context))
            answers = [part.text for part in texts(example.context) if part.text in (" yes", " no")]
            labels = [int(premise[8:-1]) % 2 for premise in premises[:-1]]
            assert answers == [(" yes", " no")[label] for label in labels]
    assert [e.context for e in shown.examples(read, "test")] == [
        e.context for e in shown.examples(read, "test")
    ]


def test_too_few_records_to_demonstrate_with(tmp_path: Path) -> None:
    read = reader(tmp_path, *ROWS[:4])
    told = "senses: 4 demonstrations are asked for, and the split train has 3 records to take them"
    with pytest.raises(DataError, match=told):
        list(Protocol(demonstrations=4).examples(read, "train"))


def test_a_record_never_shows_itself_where_one_split_stands_for_two(tmp_path: Path) -> None:
    """StoryCloze has no training set: its demonstrations are of the split that is asked."""
    written(tmp_path, *ROWS[:6], split="validation")
    source = "group: word, splits: {train: validation, validation: validation}"
    read = TaskReader(task(tmp_path, changes=[("group: word", source)]))
    for example in Protocol(demonstrations=4).examples(read, "validation"):
        premises = [part.text for part in texts(example.context) if part.is_span]
        assert len({*premises}) == 5
    with pytest.raises(DataError, match="has 5 records to take them from"):
        list(Protocol(demonstrations=6).examples(read, "validation"))
