"""`python -m tools.status`: runs that are complete, go on, have died, were stopped, or are none."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.records import run_config, run_record, train_record
from tests.train.runs import kill_at, start, wait_for_step
from tools.keep.attempt import ATTEMPTS_NAME, Attempt, Verdict
from tools.status import main, status_of
from tools.submit import calling
from tools.submit.flags import comment_of
from train.config_files import dump
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.metrics import MetricsFile, read_metrics

LONG = ("steps=4000", "checkpoint.every_steps=5", "validation.every_steps=4000")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_run_from_its_first_steps_to_its_end(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    going = start(corpus, directory, *LONG)
    wait_for_step(going, directory, step=12)
    now = time.time()
    status = status_of(directory, now=now)
    assert status.state == f"running ({socket.gethostname()})"
    assert 12 <= status.step < status.total_steps == 4000
    assert status.seconds_left is not None
    assert status.seconds_left > 0
    steps = read_metrics(RunDirectory(directory).metrics)
    assert status.effective_training_time == pytest.approx(
        steps.training_seconds / (now - steps.runs[0].started), rel=0.5
    )
    kill_at(going, directory, step=14)
    died = status_of(directory, now=time.time())
    assert (died.state, died.attempts) == ("died", 1)
    assert died.checkpoint is not None
    assert died.checkpoint.startswith("step_")
    again = start(corpus, directory, *LONG)
    wait_for_step(again, directory, step=died.step + 8)
    again.signal(signal.SIGTERM)
    assert again.wait().code == ExitStatus.SAVED
    stopped = status_of(directory, now=time.time())
    assert (stopped.state, stopped.attempts) == ("stopped", 2)
    # What a keeper would have left of it.
    verdict = Verdict(kind="dead", rank=0, sentence="dead: rank 0 on here, was killed by signal 9")
    attempt = Attempt(started=1.0, ended=2.0, num_ranks=1, status=137, verdict=verdict)
    (directory / ATTEMPTS_NAME).write_text(attempt.model_dump_json() + "\n")
    assert main([str(directory)]) == ExitStatus.COMPLETE
    shown = capsys.readouterr().out
    assert f"{stopped.step:,} of 4,000" in shown
    assert f"{directory}: dead: rank 0 on here, was killed by signal 9" in shown


def test_a_complete_run(corpus: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert start(corpus, directory).wait().code == 0
    status = status_of(directory, now=time.time() + 1e6)
    assert (status.state, status.step, status.seconds_left) == ("complete", 6, None)
    # Without a keeper nothing is known but its steps: the time since its end does not count.
    assert status.effective_training_time == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is this the directory of a run"),
        ("", "has begun no run yet"),
        (json.dumps({"kind": "run"}) + "\n\n", "is damaged"),
    ],
)
def test_what_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert main([str(tmp_path)]) == ExitStatus.MISTAKE
    assert message in capsys.readouterr().err


def test_a_run_that_waits_in_the_queue_and_one_that_made_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queued, failed = tmp_path / "queued", tmp_path / "failed"
    job = calling.Job(number=7, array=7, state="PENDING", comment=comment_of([queued]))
    monkeypatch.setattr(calling, "jobs", lambda: [job])
    failed.mkdir()
    verdict = Verdict(kind="out of memory", rank=0, sentence="out of memory: rank 0 on here")
    attempt = Attempt(started=1.0, ended=2.0, num_ranks=1, status=137, verdict=verdict)
    (failed / ATTEMPTS_NAME).write_text(f"{attempt.model_dump_json()}\n")
    assert main([str(queued), str(failed), str(tmp_path / "none")]) == ExitStatus.MISTAKE
    told = capsys.readouterr().err
    assert f"{queued} has begun no run yet: its Slurm job 7 is pending" in told
    assert f"{failed} has made no step in 1 attempt(s); the last one: out of memory: rank" in told
    assert "none/metrics.jsonl does not exist: is this the directory of a run?" in told


def test_one_bad_run_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tmp_path / name for name in ("empty", "a run=1 'é'", "damaged")]
    for run in runs:
        run.mkdir()
        (run / "config.yaml").write_text(dump(run_config(run)))
    (runs[2] / "metrics.jsonl").write_text("{}\n\n")
    verdict = Verdict(kind="dead", rank=0, sentence="dead")
    attempts = [
        Attempt(started=time, ended=time + 10, num_ranks=1, status=137, verdict=verdict)
        for time in (1e9, 1e9 + 90)
    ]
    (runs[1] / ATTEMPTS_NAME).write_text("".join(f"{a.model_dump_json()}\n" for a in attempts))
    file = MetricsFile(runs[1] / "metrics.jsonl")
    for attempt in attempts:  # both from step 0
        file.write(run_record().model_copy(update={"started": attempt.started}))
    file.write(train_record(1).model_copy(update={"step_seconds": 5.0}))
    file.close()

    assert main(list(map(str, runs))) == ExitStatus.MISTAKE

    shown = capsys.readouterr()
    assert "│ 2 " in shown.out
    assert "5.0%" in shown.out, "since the first start, not the last"
    assert str(runs[1]) in shown.out
    assert f"{runs[0]}/metrics.jsonl does not exist" in shown.err
    assert f"{runs[2]}/metrics.jsonl:1 is damaged" in shown.err
