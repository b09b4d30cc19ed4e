"""Records to examples, and what is wrong with records."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.train.tasks.making import ROW, reader, texts
from train.data.segments import TextSegment
from train.errors import DataError
from train.tasks.example import Choice


def test_an_example(tmp_path: Path) -> None:
    [example] = reader(tmp_path, ROW).examples("train")
    span, prompt = example.context
    assert span == TextSegment(
        text="A dog.\nAn animal.", is_span=True, is_scored=False, ends_paragraph=True
    )
    assert prompt == TextSegment(text="Does it follow?", is_scored=False, ends_paragraph=False)
    assert example.choices == (Choice(text="yes"), Choice(text="no"))
    assert (example.gold, example.answers, example.group) == (0, ("yes",), "dog")
    assert example.id == "senses/train:0"
    assert example.document() == (*example.context, TextSegment(text=" yes"))
    assert texts(example.document(example.choices[1]))[-1].text == " no"


def test_an_inverted_template_learns_what_was_asked(tmp_path: Path) -> None:
    [example] = reader(tmp_path, ROW).examples("train", template=1)
    assert [part.text for part in texts(example.document())] == [
        "A dog.",
        "It is yes that:",
        " An animal.",
    ]
    assert (example.choices, example.gold, example.answers) == ((), None, ("An animal.",))


def test_demonstrations_are_read_and_not_scored(tmp_path: Path) -> None:
    other = {**ROW, "premise": "A cat.", "label": 1}
    one, two = reader(tmp_path, ROW, other).examples("train")
    *shown, answer = texts(two.behind([one]).document())
    assert [(part.text, part.ends_paragraph) for part in shown] == [
        ("A dog.\nAn animal.", True),
        ("Does it follow?", False),
        (" yes", True),
        ("A cat.\nAn animal.", True),
        ("Does it follow?", False),
    ]
    assert not any(part.is_scored for part in shown)
    assert answer == TextSegment(text=" no")


def test_marks_in_a_record_are_text(tmp_path: Path) -> None:
    [example] = reader(tmp_path, {**ROW, "premise": "a [[b]] {{ c }}"}).examples("train")
    assert texts(example.context)[0].text == "a [[b]] {{ c }}\nAn animal."


def test_records_that_do_not_count_are_passed_over(tmp_path: Path) -> None:
    rows = [{**ROW, "label": -1}, ROW]
    kept = reader(tmp_path, *rows, changes=[("group: word", "keep: label >= 0")])
    [example] = kept.examples("train")
    assert (example.id, example.group) == ("senses/train:1", "1")


def test_columns_are_made_of_columns(tmp_path: Path) -> None:
    made = "columns: {a: both.first, premise: \"a + '!'\"}\nanswer:\n  kind: choice"
    row = {**ROW, "both": {"first": "One"}}
    [example] = reader(tmp_path, row, changes=[("answer:\n  kind: choice", made)]).examples("train")
    assert texts(example.context)[0].text == "One!\nAn animal."


def test_a_column_whose_name_is_none(tmp_path: Path) -> None:
    changes = [("label: label", "label: record['the-label']")]
    [example] = reader(tmp_path, {**ROW, "the-label": 1}, changes=changes).examples("train")
    assert example.answers == ("no",)


def test_a_column_of_any_name(tmp_path: Path) -> None:
    [example] = reader(tmp_path, {**ROW, "self": "dog", "args": 1}).examples("train")
    assert example.answers == ("yes",)


def test_a_field_called_as_what_dictionaries_can_do(tmp_path: Path) -> None:
    row = {**ROW, "premise": {"items": "A dog.", "tags": ["is", "one"]}}
    changes = [("{{ premise }}\n", "{{ premise.items }} {{ premise.tags | join(' ') }}\n")]
    [example] = reader(tmp_path, row, changes=changes).examples("train")
    assert texts(example.context)[0].text == "A dog. is one\nAn animal."
    changes = [("{{ premise }}\n", "{{ premise.keys }}\n")]
    other = reader(tmp_path, row, changes=changes)
    with pytest.raises(DataError, match="a value is builtin_function_or_method, and no text"):
        list(other.examples("train"))


def test_what_to_write_for_a_null_is_the_templates_to_say(tmp_path: Path) -> None:
    changes = [("{{ premise }}\n", "{{ premise or 'Nothing.' }}\n")]
    [example] = reader(tmp_path, {**ROW, "premise": None}, changes=changes).examples("train")
    assert texts(example.context)[0].text == "Nothing.\nAn animal."


BEFORE = """choices: ["{{ rest }}", "{{ rest }}"]
  before: ["{{ begin }} {{ one }}", "{{ begin }} {{ two }}"]"""


def test_choices_before_equal_ends(tmp_path: Path) -> None:
    row = {**ROW, "begin": "The cup", "one": "broke", "two": "ate", "rest": "as it fell."}
    [example] = reader(tmp_path, row, changes=[('choices: ["yes", "no"]', BEFORE)]).examples(
        "train"
    )
    assert example.document(example.choices[1])[2:] == (
        TextSegment(text=" The cup ate", is_scored=False, ends_paragraph=False),
        TextSegment(text=" as it fell."),
    )


@pytest.mark.parametrize(
    ("row", "changes", "told"),
    [
        ({"label": 2}, (), "train.jsonl:2: the label 2 is none of 0, 1: correct answer.label"),
        ({"label": True}, (), "train.jsonl:2: the label True is none of 0, 1"),
        ({"premise": " ", "hypothesis": ""}, (), "train.jsonl:2: a span of templates.first is emp"),
        (
            {},
            [('["yes", "no"]', '["yes", "yes "]')],
            "train.jsonl:1: two choices are 'yes', and none could be told right",
        ),
        (
            {},
            [('["yes", "no"]', '["yes", "{{ nothing }}"]')],
            "answer.choices: the records have no",
        ),
        ({}, [('["yes", "no"]', "word")], "answer.choices: gives 'dog', and not a list of texts"),
        ({}, [("label: label", "label: label\n  labels: [0]")], "2 choices and 1 labels"),
        ({"label": None}, [("label: label", "label: label + 1")], "train.jsonl:2: answer.label: u"),
        ({"premise": None}, (), "train.jsonl:2: templates.first.input: a value is null: pass the"),
        ({"premise": math.nan}, (), "train.jsonl:2: templates.first.input: a value is null: pass"),
        (
            {"premise": ["a", None]},
            [("{{ premise }}\n", "{{ premise if premise is string else premise | join }}\n")],
            "train.jsonl:2: templates.first.input: a value is null: pass the",
        ),
        ({"premise": ["a"]}, (), "train.jsonl:2: templates.first.input: a value is a list: say"),
        (
            {"premise": {"text": "a", "at": 3}},
            (),
            "train.jsonl:2: templates.first.input: a value is of several fields: name one of text,",
        ),
    ],
)
def test_a_record_that_does_not_fit_is_named(
    tmp_path: Path, row: dict[str, Any], changes: list[tuple[str, str]], told: str
) -> None:
    with pytest.raises(DataError) as error:
        list(reader(tmp_path, ROW, {**ROW, **row}, changes=changes).examples("train"))
    assert told in str(error.value)


def test_every_missing_column_is_told_before_anything_is_read(tmp_path: Path) -> None:
    changes = [("{{ premise }}", "{{ premis }}"), ("group: word", "group: wordd")]
    with pytest.raises(DataError) as error:
        next(reader(tmp_path, ROW, changes=changes).examples("train"))
    assert str(error.value).splitlines() == [
        f"task senses does not fit {tmp_path}/train.jsonl:",
        "  source.group: the records have no column wordd; did you mean word?",
        "  templates.first.input: the records have no column premis; did you mean premise?",
        "  templates.backwards.input: the records have no column premis; did you mean premise?",
    ]


def test_a_column_that_a_later_record_lacks(tmp_path: Path) -> None:
    lacking = {key: value for key, value in ROW.items() if key != "premise"}
    with pytest.raises(DataError, match=r"jsonl:2: templates.first.input: 'premise' is undefined"):
        list(reader(tmp_path, ROW, lacking).examples("train"))
