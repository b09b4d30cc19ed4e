"""Each step has one row, whatever is made again."""

import random

import pytest

from tests.train.records import run_record, train_record, validation_record
from train.watch.metrics import LeftOutRecord, Record, SampleRecord, ScoreRecord
from train.watch.wandb_run.rows import Row, Rows


def rows_of(records: list[Record], *, after: int = -1, left_out: int = -1) -> list[Row]:
    rows = Rows(after=after, left_out=left_out)
    made = [row for record in records for row in rows.add(record)]
    return made + rows.rest()


def steps(rows: list[Row]) -> list[int]:
    return [row.step for row in rows]


def test_a_step_has_one_row_with_all_of_it() -> None:
    records: list[Record] = [
        run_record(),
        validation_record(0),
        train_record(1, by_source={"news": 4.25}),
        train_record(2, gradient_norms={"decoder.blocks.0": 0.5, "connectors.text": 2.0}),
        validation_record(2, by_source={"news": 4.0}),
        ScoreRecord(
            step=2, task="mood", metric="f1", score=0.5, standard_error=0.1, rows=9, seconds=1.0
        ),
        SampleRecord(step=2, prompt="a", text="b"),
        SampleRecord(step=2, prompt="c", text="d"),
        train_record(3, loss=float("nan")),
    ]
    rows = rows_of(records)
    assert steps(rows) == [0, 1, 2, 3]
    assert "train/loss" not in rows[0].values
    assert rows[2].values["train/loss"] == train_record(2).loss
    assert rows[2].values["validation/loss/news"] == 4.0
    assert rows[1].values["train/loss/news"] == 4.25
    assert rows[2].values["score/mood"] == 0.5
    assert rows[2].values["norm/decoder.blocks.0"] == 0.5
    assert not any(name.startswith("norm/") for row in (rows[1], rows[3]) for name in row.values)
    assert rows[2].samples == [(2, "a", "b"), (2, "c", "d")]
    # Two ranks.
    assert rows[1].values["speed/tokens_per_second"] == 5000.0
    assert rows[1].values["speed/tokens_per_second_of_rank"] == 2500.0


def test_what_is_made_again_has_its_row() -> None:
    known = [validation_record(4), train_record(5), train_record(6), train_record(7)]
    rows = rows_of([*known, validation_record(7), train_record(8)], after=6)
    assert steps(rows) == [7, 8]


def test_what_is_new_of_an_earlier_step_comes_with_the_next() -> None:
    # A run that was asked to stop after step 4 has not validated there.
    rows = rows_of([validation_record(4, 3.5), train_record(5)], after=4)
    assert steps(rows) == [5]
    assert rows[0].values["validation/step"] == 4
    assert rows[0].values["validation/loss"] == 3.5


def test_going_back_is_told_once() -> None:
    left_out = [LeftOutRecord(step=step, reason="spike") for step in (5, 6)]
    first = [train_record(step) for step in range(1, 8)]
    again = [train_record(3), train_record(4), *left_out, train_record(7, loss=1.5)]
    rows = rows_of([*first, *left_out, *again, train_record(8)])
    assert steps(rows) == list(range(1, 9))
    # The row under way is step 7's, of which the second loss counts.
    assert rows[6].values["train/left_out"] == 6
    assert rows[6].values["train/loss"] == 1.5
    alerts = [alert for row in rows for alert in row.alerts]
    assert alerts == [("step 5 is left out", "spike"), ("step 6 is left out", "spike")]


@pytest.mark.parametrize("seed", range(20))
def test_starts_that_end_anywhere_leave_each_step_once(seed: int) -> None:
    """Brute force: saved every 5 steps, killed anywhere, known up to anywhere before that."""
    chance = random.Random(seed)
    uploaded: list[int] = []
    first_step = 0
    while first_step < 60:
        last = min(60, first_step + chance.randrange(1, 25))
        rows = Rows(after=max(uploaded, default=-1))
        made: list[int] = []
        if first_step % 5 == 0:
            made += steps(rows.add(validation_record(first_step)))
        for step in range(first_step + 1, last + 1):
            made += steps(rows.add(train_record(step)))
        made += steps(rows.rest())
        # All that a checkpoint covers is filled up from the file of metrics; beyond, a kill loses.
        saved = last if last == 60 else last // 5 * 5
        kept = [step for step in made if step <= saved]
        lost = [step for step in made if step > saved]
        uploaded += kept + lost[: chance.randrange(len(lost) + 1)]
        first_step = saved
    assert [step for step in uploaded if step] == list(range(1, 61))


def test_who_begins_anew_tells_no_left_out_step_again() -> None:
    left_out = [LeftOutRecord(step=step, reason="spike") for step in (5, 6, 9)]
    rows = rows_of([*left_out, train_record(11), train_record(12)], after=10, left_out=6)
    assert [alert for row in rows for alert in row.alerts] == [("step 9 is left out", "spike")]
