"""Records in each form that they come in."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.errors import DataError
from train.tasks.records import records

ROWS = [{"text": f"Row {n}.", "answers": {"text": [str(n)], "start": [n]}} for n in range(2_500)]


def values(directory: Path, split: str = "train") -> list[object]:
    found = [*records(directory, split)]
    assert [record.number for record in found] == [*range(len(found))]
    return [record.values for record in found]


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)))
    assert values(tmp_path) == ROWS
    assert [r.place for r in records(tmp_path, "train")][1] == f"{tmp_path}/train.jsonl:3"


def zst(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS[:50]).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
        ("train.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + LINES)),
        ("train.jsonl.zst", zst(LINES)),
    ],
    ids=["windows", "gz", "zst"],
)
def test_lines_as_others_write_them(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert values(tmp_path) == ROWS[:50]


def test_lines_in_parts(tmp_path: Path) -> None:
    for part, rows in enumerate((ROWS[:3], ROWS[3:5])):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / f"train-{part:05}-of-00002.jsonl.gz").write_bytes(gzip.compress(lines))
    assert values(tmp_path) == ROWS[:5]


def test_a_line_end_of_unicode_ends_no_record(tmp_path: Path) -> None:
    row = {"text": "one\u2028two\x85three"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert values(tmp_path) == [row]


def test_columns_of_parquet_as_others_write_them(tmp_path: Path) -> None:
    columns = {
        "large": pa.array(["a", None], pa.large_string()),
        "coded": pa.array(["x", "x"]).dictionary_encode(),
        "several": pa.array([["a", "b"], []], pa.large_list(pa.string())),
        "nested": pa.array([{"text": ["q"], "at": 3}, None]),
        "number": pa.array([1, None], pa.int16()),
        "view": pa.array(["v", "w"], pa.string_view()),
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert values(tmp_path) == [
        {"large": "a", "coded": "x", "several": ["a", "b"], "nested": {"text": ["q"], "at": 3},
         "number": 1, "view": "v"},
        {"large": None, "coded": "x", "several": [], "nested": None, "number": None, "view": "w"},
    ]  # fmt: skip


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train.parquet", row_group_size=700)
    assert values(tmp_path) == ROWS


@pytest.mark.parametrize("place", [".", "data"])
def test_parquet_in_parts(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    for part in range(2):
        path = tmp_path / place / f"train-{part:05}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS[part * 1000 : part * 1000 + 1000]), path)
    assert values(tmp_path) == ROWS[:2000]


def test_a_directory_that_datasets_saved(tmp_path: Path) -> None:
    """In the form of `save_to_disk`: streams of batches, and `state.json` that orders them."""
    split = tmp_path / "train"
    split.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, rows in zip(names, (ROWS[:1500], ROWS[1500:]), strict=True):
        table = pa.Table.from_pylist(rows)
        with (
            pa.OSFile(str(split / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as to,
        ):
            to.write_table(table, max_chunksize=400)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (split / "state.json").write_text(json.dumps(state))
    assert values(tmp_path) == ROWS
    assert [*records(tmp_path, "train")][1500].place == f"{split}/{names[1]}:1"


def test_what_datasets_itself_has_saved() -> None:
    """Written by `Dataset.save_to_disk` of datasets 5.0.1, in two files."""
    found = values(Path("tests/fixtures/saved_by_datasets"))
    assert found == [
        {
            "question": f"Question {n}?",
            "choices": {"text": [f"a{n}", f"b{n}"], "label": ["A", "B"]},
            "answerKey": "AB"[n % 2],
            "kind": n % 2,
        }
        for n in range(6)
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("train.jsonl", b'{"a": 1}\n[2]\n', "line 2 is a JSON list, not an object"),
        ("train.jsonl", b'{"a": 1}\n{\n', "line 2 is not JSON"),
        (
            "train.jsonl",
            b'{"a": 1}\n{"a": "\xff"}',
            "train.jsonl cannot be read .line 2 is not UTF-8",
        ),
        ("train.jsonl", '{"a": 1}'.encode("utf-16"), "line 1 is not UTF-8"),
        ("train.jsonl.gz", gzip.compress(LINES)[:-9], "train.jsonl.gz cannot be read"),
        ("train.jsonl.gz", LINES, "train.jsonl.gz cannot be read"),
        ("train.jsonl.zst", zst(LINES)[:-4], "train.jsonl.zst cannot be read"),
        ("train.jsonl", b'{"a": "x"}\n{"a": "\\uD83d x"}', "line 2 has a character cut in half"),
        ("train.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("train.parquet", b"no parquet", "train.parquet cannot be read"),
        ("train/x.arrow", b"no arrow", "x.arrow cannot be read"),
        ("train/state.json", b"{}", "state.json is damaged"),
        ("other.jsonl", b"", "holds no split train .*; it holds other.jsonl: where a split"),
        ("state.json", b"{}", r"without splits: say which split it is, as in source.splits: .test"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        list(records(tmp_path, "train"))


def test_a_data_set_without_splits_is_named_as_one() -> None:
    """`Dataset.save_to_disk`, not that of a `DatasetDict`."""
    whole = Path("tests/fixtures/saved_by_datasets/train")
    assert len(values(whole, ".")) == 6


def test_a_split_that_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(LINES)
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"split train twice, in train\.jsonl and train\.parquet: "):
        list(records(tmp_path, "train"))
