"""The timeline of a profiled step, and what a schedule allows at best."""

import gzip
import json
import random
from pathlib import Path

import pytest

from parallel.named import Part
from tests.corpora import write_corpus
from tests.train.runs import run
from tools.trace.__main__ import main
from tools.trace.timeline import Work, from_zero, idle_share, planned, read_work
from train.errors import DataError
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics

CALM = ("checkpoint.every_steps=1000", "validation.every_steps=1000")


def one_forward_one_backward(stages: int, microbatches: int) -> list[Work]:
    """The order of 1F1B (2104.04473 §2.2), in some seconds that only keep it."""
    random.seed(stages)
    found: list[Work] = []
    for stage in range(stages):
        warm = min(stages - stage - 1, microbatches)
        order: list[tuple[Part, int]] = [(Part.FORWARD, number) for number in range(warm)]
        for number in range(microbatches - warm):
            order += [(Part.FORWARD, warm + number), (Part.BACKWARD, number)]
        order += [(Part.BACKWARD, number) for number in range(microbatches - warm, microbatches)]
        now = random.random()
        for direction, microbatch in order:
            taken = 1.0 if direction == Part.FORWARD else 2.0
            found.append(
                Work(
                    stage=stage,
                    direction=direction,
                    microbatch=microbatch,
                    piece=stage,
                    start=now,
                    end=now + taken,
                )
            )
            now += taken + random.random()
    return found


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("microbatches", [1, 3, 8])
def test_what_is_left_idle_is_the_bubble_of_the_paper(stages: int, microbatches: int) -> None:
    laid = planned(one_forward_one_backward(stages, microbatches))
    assert max(work.end for work in laid) == pytest.approx((microbatches + stages - 1) * 3)
    for stage in range(stages):
        share = (stages - 1) / (microbatches + stages - 1)
        assert idle_share(laid, stage=stage) == pytest.approx(share)


def test_pieces_take_their_median_whatever_one_of_them_took() -> None:
    work = one_forward_one_backward(1, 5)
    slow = Work(stage=0, direction=Part.FORWARD, microbatch=9, piece=0, start=90, end=190)
    laid = planned([*work, slow])
    assert max(each.end for each in laid) == pytest.approx(5 * 3 + 1)


def test_a_trace_that_lacks_a_stage_is_told() -> None:
    work = [each for each in one_forward_one_backward(3, 4) if each.stage != 1]
    with pytest.raises(DataError, match="lacks parts of the pipeline"):
        planned(work)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"{"), gzip.compress(b"[]"), gzip.compress(b"{}")[:-4]],
)
def test_a_damaged_trace_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rank_00000.trace.json.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rank_00000.*profile another step"):
        read_work(path, stage=0, stages=2)


def test_time_on_the_gpu_counts_where_there_is_one(tmp_path: Path) -> None:
    events = [
        {"name": "semicausal forward 0.1", "cat": "user_annotation", "ts": 5.0, "dur": 1.0},
        {"name": "semicausal forward 0.1", "cat": "gpu_user_annotation", "ts": 7e6, "dur": 2e6},
        {"name": "semicausal update", "cat": "gpu_user_annotation", "ts": 9e6, "dur": 2e6},
        {"name": "aten::mm", "cat": "cpu_op", "ts": 9e6, "dur": 2e6},
    ]
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    (work,) = read_work(path, stage=1, stages=2)
    assert (work.start, work.end, work.piece) == (7.0, 9.0, 3)
    assert from_zero([work])[0].start == 0.0


def test_profiled_steps_of_an_interleaved_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus"), tmp_path / "run"
    layout = ("layout={pipeline: 2, chunks: 2}", "batch.micro_sequences=2")
    layout += ("model.decoder.num_layers=4",)
    run(corpus, directory, "steps=3", "profile={steps: [2]}", *layout, *CALM, ranks=2)
    here = RunDirectory(directory)
    notes = [note.text for note in read_metrics(here.metrics).notes]
    assert any(text.startswith("step 2 is profiled in") for text in notes)
    assert [path.name for path in here.profile.iterdir()] == ["step_00000002"]
    capsys.readouterr()
    assert main([str(directory)]) == 0
    told = capsys.readouterr().out
    assert "by the schedule alone" in told
    assert "matrix products" in told
    place = here.profile / "step_00000002"
    work = [
        each
        for stage in (0, 1)
        for each in read_work(place / f"rank_{stage:05d}.trace.json.gz", stage=stage, stages=2)
    ]
    microbatches = 1 + max(each.microbatch for each in work)
    assert {(w.direction, w.microbatch, w.piece) for w in work} == {
        (direction, microbatch, piece)
        for direction in (Part.FORWARD, Part.BACKWARD)
        for microbatch in range(microbatches)
        for piece in range(4)
    }
    assert len(work) == 2 * 4 * microbatches
    assert 'title="backward of microbatch 0, piece 3' in (place / "timeline.html").read_text()
    assert main([str(directory), "--step", "3"]) == 2
    assert "step 3 was not profiled: name one of 2" in capsys.readouterr().err


def test_nothing_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no step was profiled: train with profile='{steps: [10]}'" in capsys.readouterr().err
