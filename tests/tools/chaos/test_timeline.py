"""When steps were recorded, and what of it is new."""

from pathlib import Path

from tests.tools.chaos.making import stepped
from tools.chaos.timeline import Timeline, made_again, next_new
from train.run_directory import RunDirectory
from train.watch.metrics import MetricsFile, NoteRecord, RunRecord, TrainRecord


def run_record(step: int) -> RunRecord:
    return RunRecord(
        step=step,
        total_steps=100,
        name="run",
        num_ranks=2,
        num_threads=1,
        precision="fp32",
        num_parameters=1,
        machine="here",
        started=1.0,
    )


def train_record(step: int) -> TrainRecord:
    return TrainRecord(
        step=step,
        loss=1.0,
        first_of_span_loss=None,
        other_loss=None,
        learning_rate=0.1,
        gradient_norm=1.0,
        tokens=8,
        scored_tokens=8,
        step_seconds=0.25,
        data_wait_seconds=0.0,
        memory_bytes=1,
    )


def test_records_are_taken_as_they_come(tmp_path: Path) -> None:
    timeline = Timeline(run=tmp_path)
    assert not timeline.look()
    file = MetricsFile(RunDirectory(tmp_path).metrics)
    for record in (run_record(0), train_record(1), train_record(2), NoteRecord(step=2, text="x")):
        file.write(record)
    assert timeline.look()
    for record in (run_record(1), train_record(2), train_record(3)):
        file.write(record)
    file.close()
    with RunDirectory(tmp_path).metrics.open("ab") as cut_short:
        cut_short.write(b'{"kind":"train","st')
    assert timeline.look()
    assert not timeline.look()
    assert [(each.step, each.start, each.is_new) for each in timeline.steps] == [
        (1, 1, True),
        (2, 1, True),
        (2, 2, False),
        (3, 2, True),
    ]
    assert {each.seconds for each in timeline.steps} == {0.25}


def test_the_next_new_step() -> None:
    steps = [
        stepped(1, 1.0, start=1),
        # Under way when a rank was killed at 1.5.
        stepped(2, 2.0, start=1),
        stepped(2, 10.0, start=2, is_new=False),
        stepped(3, 11.0, start=2),
    ]
    found = next_new(steps, since=1.5, start=1, ends_an_attempt=True)
    assert found == steps[3]
    assert next_new(steps[:3], since=1.5, start=1, ends_an_attempt=True) is None
    # Nothing had to be started again.
    assert next_new(steps, since=1.5, start=1, ends_an_attempt=False) == steps[1]
    assert made_again(steps, since=1.5, until=11.0) == 1
    assert made_again(steps, since=10.5, until=11.0) == 0
