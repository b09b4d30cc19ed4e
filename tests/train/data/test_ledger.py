"""Ledgers of random histories: sound ones pass, and whatever is done to one is noticed."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.corpora import write_documents
from tests.train.storage.disks import small_disk
from train.data.corpus import Corpus
from train.data.feed import StepData
from train.data.ledger import (
    LedgerWriter,
    Record,
    Start,
    digest_of,
    listed,
    next_start,
    read_ledger,
)
from train.data.ledger_check import Ledger, check
from train.data.mixture import Mixture
from train.data.plan import Position, StepPlan, identities
from train.data.sources import Laying, Source, Sources
from train.errors import DataError, RunDirectoryError

ENTRIES = 4


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> StepPlan:
    root = write_documents(tmp_path_factory.mktemp("corpus") / "corpus", mean_tokens=20)
    source = Source("only", 0, Corpus(str(root)), Laying(sequence_tokens=32, window=30))
    return StepPlan(
        Sources([source]), Mixture(np.ones((40, 1)), sequences=ENTRIES, seed=0), entries=ENTRIES
    )


def record_of(plan: StepPlan, step: int, rank: int, ranks: int) -> Record:
    share = ENTRIES // ranks
    read = identities(plan.step(step, first=rank * share, stop=(rank + 1) * share))
    return Record(
        step=step, first=rank * share, entries=share, digest=digest_of(read), listed=listed(read)
    )


def history(plan: StepPlan, starts: list[tuple[int, int, int]]) -> Ledger:
    """Starts of (ranks, first step, last step)."""
    ledger: Ledger = {}
    for number, (ranks, first, last) in enumerate(starts, 1):
        ledger[number] = {
            rank: (
                Start(start=number, first_step=first, rank=rank, ranks=ranks, entries=ENTRIES),
                [record_of(plan, step, rank, ranks) for step in range(first + 1, last + 1)],
            )
            for rank in range(ranks)
        }
    return ledger


def replaced(record: Record, read: np.ndarray) -> Record:
    return replace(record, digest=digest_of(read), listed=listed(read))


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    starts: list[tuple[int, int, int]] = []
    reached = 0
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, reached))
        last = first + draw(st.integers(1, 6))
        starts.append((draw(st.sampled_from([1, 2, 4])), first, last))
        reached = last
    return starts


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_sound_histories_pass(plan: StepPlan, starts: list[tuple[int, int, int]]) -> None:
    last = starts[-1][2]
    findings = check(history(plan, starts), plan, saved_step=last)
    assert findings.faults == []
    assert (findings.steps, findings.entries) == (last, ENTRIES * last)
    assert (findings.entries_lost, findings.entries_repeated) == (0, 0)
    assert findings.starts == [ranks for ranks, _, _ in starts]
    again = sum(max(0, earlier[2] - later[1]) for earlier, later in pairwise(starts))
    assert findings.steps_again == again


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(), st.data())
def test_whatever_is_done_to_one_is_noticed(
    plan: StepPlan, starts: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    ledger = history(plan, starts)
    number = len(starts)  # what the last start made counts in any case
    rank = data.draw(st.integers(0, starts[-1][0] - 1))
    start, records = ledger[number][rank]
    at = data.draw(st.integers(0, len(records) - 1))
    read = records[at].identities
    assert read is not None
    other = read.copy()
    other[0, 3] += 1
    reversed_ = read[::-1].copy()
    match data.draw(st.sampled_from(["dropped", "twice", "other", "order", "place", "skipped"])):
        case "dropped":
            del records[at]
        case "twice":
            records.append(records[at])
        case "other":
            records[at] = replaced(records[at], other)
        case "order" if len(reversed_) > 1:
            records[at] = replaced(records[at], reversed_)
        case "place":
            records[at] = replace(records[at], first=records[at].first + 1)
        case _:  # a batch was skipped: what follows is one batch further
            records[at:] = [
                replace(record_of(plan, record.step + 1, rank, start.ranks), step=record.step)
                for record in records[at:]
            ]
    findings = check(ledger, plan, saved_step=starts[-1][2])
    assert findings.faults
    assert findings.entries_lost or findings.entries_repeated


def test_a_gap_between_starts_is_noticed(plan: StepPlan) -> None:
    findings = check(history(plan, [(1, 0, 3), (2, 5, 7)]), plan, saved_step=7)
    assert "goes on from step 5, but only 3 were made before" in findings.faults[0]
    assert findings.entries_lost == 2 * ENTRIES


def test_a_ledger_may_begin_where_that_of_another_run_directory_ends(plan: StepPlan) -> None:
    ledger = history(plan, [(1, 4, 6), (2, 5, 7)])
    findings = check(ledger, plan, saved_step=7)
    assert (findings.begun, findings.steps, findings.faults) == (4, 3, [])
    assert sum(share.entries for share in findings.shares) == 3 * ENTRIES
    findings = check(history(plan, [(1, 4, 6), (2, 2, 7)]), plan, saved_step=7)
    assert (findings.begun, findings.steps, findings.faults) == (2, 5, []), "gone back before it"
    assert check(history(plan, [(1, 4, 4)]), plan, saved_step=4).faults == [], "it made no step"
    del ledger[1]
    findings = check(ledger, plan, saved_step=7)
    assert findings.entries_lost == 5 * ENTRIES, "of its first start there is nothing left"


def test_a_last_step_that_only_some_ranks_finished_does_not_count(plan: StepPlan) -> None:
    ledger = history(plan, [(2, 0, 5)])
    ledger[1][1][1].pop()
    findings = check(ledger, plan, saved_step=4)
    assert (findings.steps, findings.faults) == (4, [])
    assert "ledger ends at step 4" in check(ledger, plan, saved_step=5).faults[0]


def without(record: Record) -> Record:
    """That the step of a record is left out."""
    nothing = np.zeros((0, 6), dtype=np.int64)
    return replace(record, entries=0, digest=digest_of(nothing), listed=listed(nothing))


@pytest.mark.parametrize("was_read", [False, True])
def test_steps_that_are_left_out(was_read: bool, plan: StepPlan) -> None:
    """They are told, and only those that the run says it leaves out may be."""
    ledger = history(plan, [(2, 0, 3), (2, 3, 7)])
    for number, step in ((1, 3), (2, 5), (2, 7)):
        for _, records in ledger[number].values():
            at = next(n for n, record in enumerate(records) if record.step == step)
            mark = without(records[at])
            records[at : at + 1] = [records[at], mark] if was_read else [mark]
    findings = check(ledger, plan, saved_step=7, left_out={3, 5, 7})
    assert (findings.faults, findings.left_out, findings.steps) == ([], [3, 5, 7], 4)
    assert findings.entries == 4 * ENTRIES
    for told, fault in (
        ({3, 7}, "step 5 was left out, and the run does not say why"),
        ({3, 4, 5, 7}, "step 4 was made, and the run says that it is left out"),
    ):
        findings = check(ledger, plan, saved_step=7, left_out=told)
        assert findings.faults == [fault]


NOWHERE = Position(rows_given=[], anchors=[])


def data_of(read: np.ndarray) -> StepData:
    return StepData(batches=[], identities=read, first=0, entries=ENTRIES, position=NOWHERE)


def write(directory: Path, plan: StepPlan, *, steps: int, limit_bytes: int = 1 << 20) -> Path:
    start = Start(start=next_start(directory), first_step=0, rank=0, ranks=1, entries=ENTRIES)
    writer = LedgerWriter(directory, start, limit_bytes=limit_bytes)
    for step in range(1, steps + 1):
        read = identities(plan.step(step))
        writer.add(step, data_of(read))
    writer.settle()
    return directory / f"{start.start:05d}-00000.bin"


def test_what_was_written_comes_back(plan: StepPlan, tmp_path: Path) -> None:
    path = write(tmp_path, plan, steps=5)
    start, records = read_ledger(tmp_path)[1][0]
    assert start == Start(start=1, first_step=0, rank=0, ranks=1, entries=ENTRIES)
    assert [record.step for record in records] == [1, 2, 3, 4, 5]
    for record in records:
        assert record.identities is not None
        np.testing.assert_array_equal(record.identities, identities(plan.step(record.step)))
    assert next_start(tmp_path) == 2
    with pytest.raises(RunDirectoryError, match=r"cannot be written \(File exists\): make room"):
        LedgerWriter(tmp_path, start, limit_bytes=1)
    assert path.stat().st_size < 5 * 400
    first = path.read_bytes().partition(b"\n")[0]
    assert json.loads(first)["rows"] == ENTRIES, "the key of ledgers of earlier versions"


def test_a_killed_writer_leaves_all_but_its_last_record(plan: StepPlan, tmp_path: Path) -> None:
    path = write(tmp_path, plan, steps=5)
    content = path.read_bytes()
    counts: list[int] = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        _, records = read_ledger(tmp_path)[1][0]
        assert [record.step for record in records] == list(range(1, len(records) + 1))
        counts.append(len(records))
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_any_changed_byte_is_noticed(plan: StepPlan, tmp_path: Path) -> None:
    path = write(tmp_path, plan, steps=3)
    content = path.read_bytes()
    for place in range(content.index(b"\n") + 1, len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(bytes(changed))
        try:
            ledger = read_ledger(tmp_path)
        except DataError:
            continue
        # A length that now points beyond the end looks like the record the process died in.
        assert check(ledger, plan, saved_step=3).faults, place


def test_a_ledger_of_another_version_is_refused(plan: StepPlan, tmp_path: Path) -> None:
    path = write(tmp_path, plan, steps=1)
    line, _, rest = path.read_bytes().partition(b"\n")
    header = json.loads(line) | {"format_version": 2}
    path.write_bytes(json.dumps(header).encode() + b"\n" + rest)
    with pytest.raises(DataError, match="format version 2; this version reads 1"):
        read_ledger(tmp_path)
    with pytest.raises(DataError, match="there is no ledger"):
        read_ledger(tmp_path / "none")


def test_what_was_noted_before_a_full_disk_settles(plan: StepPlan, tmp_path: Path) -> None:
    start = Start(start=1, first_step=0, rank=0, ranks=1, entries=ENTRIES)
    with small_disk(tmp_path / "disk", num_bytes=16 << 10) as disk:
        writer = LedgerWriter(disk, start, limit_bytes=1 << 20)
        step, fault = 0, None
        while fault is None:
            step += 1
            fault = writer.add(step, data_of(identities(plan.step(1 + step % 30))))
        assert "(No space left on device): make room there" in str(fault)
        with pytest.raises(RunDirectoryError, match="No space left on device"):
            writer.settle()
        _, records = read_ledger(disk)[1][0]
        assert [record.step for record in records] == list(range(1, step))


def test_a_ledger_that_is_replaced_is_told_as_what_it_is(plan: StepPlan, tmp_path: Path) -> None:
    start = Start(start=1, first_step=0, rank=0, ranks=1, entries=ENTRIES)
    writer = LedgerWriter(tmp_path, start, limit_bytes=1 << 20)
    (tmp_path / "00001-00000.bin").unlink()
    (tmp_path / "00001-00000.bin").mkdir()
    assert "(Is a directory)" in str(writer.add(1, data_of(identities(plan.step(1)))))
    with pytest.raises(RunDirectoryError, match="Is a directory"):
        writer.settle()
    (tmp_path / "00001-00000.bin").rmdir()
    assert writer.add(2, data_of(identities(plan.step(2)))) is None
    assert [record.step for record in read_ledger(tmp_path)[1][0][1]] == [1, 2]
