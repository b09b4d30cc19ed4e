"""metrics.jsonl: nothing lost, nothing rounded, readable after a kill and after a resume."""

import json
import math
from pathlib import Path

import pytest

from tests.train.records import run_record, train_record, validation_record
from train.errors import DataError
from train.watch.metrics import MetricsFile, NoteRecord, Record, SampleRecord, read_metrics


def write(path: Path, *records: Record) -> None:
    file = MetricsFile(path)
    for record in records:
        file.write(record)
    file.close()


def refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def test_records_come_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    loss = math.nextafter(0.1 + 0.2, 1.0)
    records = [run_record(), train_record(1, loss=loss), validation_record(1, 1 / 3)]
    write(path, *records)

    metrics = read_metrics(path)

    assert metrics.runs == [records[0]]
    assert metrics.train == [records[1]]
    assert metrics.train[0].loss == loss
    assert metrics.validation == [records[2]]


def test_each_record_is_on_disk_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (1, 2):
        file.write(train_record(step))
        assert len(path.read_text().splitlines()) == step
    file.close()


def test_strict_readers_can_read_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, train_record(1, loss=math.nan, gradient_norm=math.inf, first_of_span_loss=None))

    values = json.loads(path.read_text(), parse_constant=refuse_constant)
    assert values["loss"] is None
    assert values["gradient_norm"] is None

    record = read_metrics(path).train[0]
    assert math.isnan(record.loss)
    assert math.isnan(record.gradient_norm)
    assert record.first_of_span_loss is None


def test_the_last_record_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, run_record(0), *(train_record(step, loss=9.0) for step in range(1, 6)))
    write(path, run_record(3), *(train_record(step, loss=8.0) for step in range(4, 7)))

    metrics = read_metrics(path)

    assert [record.step for record in metrics.runs] == [0, 3]
    assert [record.step for record in metrics.train] == [1, 2, 3, 4, 5, 6]
    assert [record.loss for record in metrics.train] == [9.0, 9.0, 9.0, 8.0, 8.0, 8.0]


def test_a_step_keeps_all_its_texts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    samples = [SampleRecord(step=2, prompt=prompt, text="x\u2028\n") for prompt in ("a", "b")]
    notes = [NoteRecord(step=2, text=text) for text in ("one", "two")]
    write(path, *samples, *notes)

    metrics = read_metrics(path)

    assert metrics.samples == samples
    assert metrics.notes == notes


def test_a_line_torn_by_a_kill_is_left_out_and_then_mended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, train_record(1), train_record(2))
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1

    for length in range(first_line, len(whole)):
        path.write_bytes(whole[:length])
        read = [record.step for record in read_metrics(path).train]
        # All but its newline is there: the record is whole.
        assert read == ([1, 2] if length == len(whole) - 1 else [1])

        write(path, train_record(3))
        assert [record.step for record in read_metrics(path).train] == [1, 3]


def test_damage_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train"\n{"kind": "note", "step": 1, "text": "x"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:1 is damaged: .*; delete this line"):
        read_metrics(path)


def test_kinds_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind":"heartbeat","step":3}}\n{train_record(4).model_dump_json()}\n')
    assert read_metrics(path).train == [train_record(4)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: is this the directory of a run"):
        read_metrics(tmp_path / "metrics.jsonl")
