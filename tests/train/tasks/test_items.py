"""Pictures that records bring: bytes, or files beside the records; and what is wrong with them."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import sounds
from tests.tools.corpus.making import picture
from tests.train.tasks.making import reader, task, written
from train.data.document import Kind
from train.data.segments import MediaSegment, Segment, TextSegment
from train.errors import ConfigError, DataError
from train.prompt import shown
from train.tasks.protocol import Protocol
from train.tasks.reader import TaskReader
from train.tasks.task import load_tasks

ASKED = """\
name: seen
cluster: naming
source: {directory: DIRECTORY}
answer: {kind: choice, choices: [dog, cat], label: label}
templates:
  - name: first
    input: |-
      [[image:{{ picture }}]]
      It is a
scoring: {kind: likelihood}
metrics: [accuracy]
"""
DATA = picture(1, side=12)
ITEM = MediaSegment(kind=Kind.IMAGE, data=DATA, size=(12, 12))
BEHIND = TextSegment(text="It is a", is_scored=False, ends_paragraph=False)


def contexts(directory: Path, *rows: Any, text: str = ASKED) -> list[Sequence[Segment]]:
    found = TaskReader(task(written(directory, *rows), text))
    return [example.context for example in found.examples("train")]


def in_parquet(directory: Path, *values: Any, kind: pa.DataType | None = None) -> TaskReader:
    directory.mkdir(exist_ok=True)
    columns = {"picture": pa.array(values, kind), "label": [0] * len(values)}
    pq.write_table(pa.table(columns), directory / "train.parquet")
    return TaskReader(task(directory, ASKED))


def test_bytes_of_a_column(tmp_path: Path) -> None:
    [example] = in_parquet(tmp_path, DATA).examples("train")
    assert example.context == (ITEM, BEHIND)
    assert example.document() == (ITEM, BEHIND, TextSegment(text=" dog"))


def test_as_the_datasets_library_stores_pictures(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(DATA)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    both = {"bytes": DATA, "path": "elsewhere.png"}
    found = in_parquet(tmp_path, both, {"bytes": None, "path": "b.png"}, kind=kind)
    assert [example.context[0] for example in found.examples("train")] == [ITEM, ITEM]


def test_a_file_beside_the_records_or_below(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(DATA)
    (tmp_path / "b.png").write_bytes(DATA)
    rows = [{"picture": name, "label": 0} for name in ("pictures/a.png", "b.png")]
    assert contexts(tmp_path, *rows) == [(ITEM, BEHIND)] * 2
    below = ASKED.replace("{{ picture }}", "pictures/{{ picture }}.png")
    assert contexts(tmp_path, {"picture": "a", "label": 0}, text=below) == [(ITEM, BEHIND)]


def test_bytes_in_json(tmp_path: Path) -> None:
    row = {"picture": {"bytes": base64.b64encode(DATA).decode()}, "label": 0}
    assert contexts(tmp_path, row) == [(ITEM, BEHIND)]


def test_two_pictures_among_texts(tmp_path: Path) -> None:
    text = ASKED.replace(
        "[[image:{{ picture }}]]",
        "Left:\n      [[image:{{ picture }}]]\n      "
        "[[{{ label }} so far]] and [[image: {{record['other']}} ]].",
    )
    (tmp_path / "a.png").write_bytes(DATA)
    (tmp_path / "b.png").write_bytes(picture(2))
    [found] = contexts(tmp_path, {"picture": "a.png", "other": "b.png", "label": 1}, text=text)
    assert [getattr(part, "text", None) for part in found] == [
        "Left:", None, "1 so far", " and", None, ".\n\nIt is a",
    ]  # fmt: skip
    # A line end beside an item ends the text's paragraph, and none of the item's.
    ends = [part.ends_paragraph for part in found if isinstance(part, TextSegment)]
    assert ends == [True, False, False, False]
    assert found[4] == MediaSegment(kind=Kind.IMAGE, data=picture(2), size=(8, 8))


def test_demonstrations_show_their_pictures(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [{"picture": f"{number}.png", "label": number % 2} for number in range(3)]
    found = TaskReader(task(written(tmp_path, *rows), ASKED))
    [first, *_] = Protocol(demonstrations=2).examples(found, "train")
    items = [part for part in first.context if isinstance(part, MediaSegment)]
    assert items[-1].data == picture(0)
    assert {item.data for item in items} == {picture(number) for number in range(3)}
    answers = [part for part in first.context if isinstance(part, TextSegment)][1::2]
    assert all(part.ends_paragraph and not part.is_scored for part in answers)


def test_what_is_no_picture_is_named_with_its_record(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(DATA[:20])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a picture")
    (tmp_path / "below").mkdir()
    for value, told in (
        (None, "is null"),
        (3, "is neither a path nor bytes"),
        ("none.png", r"cannot be read from .*none.png \(No such file or directory\)"),
        (".", "the path '.' does not lie beside the table or below"),
        ("below", r"cannot be read from .* \(Is a directory\)"),
        ("../x.png", r"the path '../x.png' does not lie beside the table or below"),
        ("/etc/passwd", r"the path '/etc/passwd' does not lie beside the table or below"),
        ("a\0b", "null byte"),
        ({"bytes": "*"}, "has bytes that are not in base 64"),
        ({"bytes": None, "path": None}, "is neither a path nor bytes"),
        ("empty.png", "is empty"),
        ("text.png", r"cannot be read \(no format that is known begins with b'a pictur'"),
        ("cut.png", "cannot be read"),
    ):
        with pytest.raises(DataError) as refused:
            contexts(tmp_path, {"picture": value, "label": 0})
        assert str(refused.value).startswith(
            f"{tmp_path}/train.jsonl:1: the image of templates.first "
        )
        assert refused.match(told)
        assert str(refused.value).endswith(": mend it, or pass the record over with source.keep")


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"the records have no column picture; did you mean pictures\?"
    ):
        contexts(tmp_path, {"pictures": "a.png", "label": 0})


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ("[[sound:{{ picture }}]]", r"templates.0.input: its \[\[sound: .* names a modality"),
        ("[[image:{{ picture }]]", "templates.0.input: cannot be read as a jinja template"),
        ("[[image:{{ picture + }}]]", "templates.0.input: cannot be read as a jinja"),
        ("[[image:]]", r"templates.0.input: its span '\[\[image:\]\].* is empty"),
    ],
)
def test_marks_that_make_no_sense(tmp_path: Path, mark: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        contexts(tmp_path, text=ASKED.replace("[[image:{{ picture }}]]", mark))


def test_a_sound_that_a_record_brings(tmp_path: Path) -> None:
    text = ASKED.replace("image:", "audio:")
    data = sounds.saved(sounds.noise(70), 8000)
    (tmp_path / "a.wav").write_bytes(data)
    row = {"picture": "a.wav", "label": 0}
    item = MediaSegment(kind=Kind.AUDIO, data=data, size=(70, 8000))
    assert contexts(tmp_path, row, text=text) == [(item, BEHIND)]
    (tmp_path / "a.wav").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"the audio of templates\.first is cut off: 139 of 140 by"):
        contexts(tmp_path, row, text=text)


def test_which_tasks_show_items(tmp_path: Path) -> None:
    assert TaskReader(task(tmp_path, ASKED)).has_media
    assert not reader(tmp_path / "other").has_media


def test_an_item_is_shown_by_its_size() -> None:
    assert shown([ITEM, BEHIND]) == f"[[image:{len(DATA):,} bytes]]It is a"


def test_every_shipped_task_of_pictures_loads_and_shows_one() -> None:
    found = load_tasks(["pictures"])
    assert len(found) == 6
    assert all(TaskReader(each).has_media for each in found)
