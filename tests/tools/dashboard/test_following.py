"""What a dashboard is told of a run: each step once, few rows of long runs, and every bad one."""

import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.train.records import run_record, train_record, validation_record
from tools.dashboard import __main__ as dashboard
from tools.dashboard import following
from tools.dashboard.following import Followed
from tools.dashboard.thinning import MOST_BUCKETS, Thinning
from tools.keep.attempt import ATTEMPTS_NAME, Attempt, Verdict
from train.exit_status import ExitStatus
from train.watch.hardware import GpuUse, HardwareUse
from train.watch.metrics import LeftOutRecord, MetricsFile, Record, SampleRecord
from train.watch.wandb_run.rows import Row


def recorded(path: Path, records: Sequence[Record]) -> None:
    file = MetricsFile(path / "metrics.jsonl")
    for record in records:
        file.write(record)
    file.close()


def told(run: Followed, kind: str) -> list[dict]:
    return [each for message in run.news() for each in message.get(kind, [])]


def test_a_run_is_followed_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Followed(tmp_path, name="a run")
    assert list(run.news()) == []
    recorded(tmp_path, [run_record(), *map(train_record, range(1, 5))])
    [rows, alerts] = run.news()
    assert [row["step"] for row in rows["rows"]] == [1, 2, 3]
    assert rows["run"] == "a run"
    assert rows["rows"][0]["values"]["train/loss"] == train_record(1).loss
    assert [alert["title"] for alert in alerts["alerts"]] == ["start 1"]
    # Killed, it goes on from step 2.
    sample = SampleRecord(step=6, prompt="The", text=" end")
    recorded(tmp_path, [run_record(2), *map(train_record, range(3, 7)), sample])
    rows, alerts = run.news()
    assert [row["step"] for row in rows["rows"]] == [4, 5]
    assert rows["rows"][1]["values"]["marks/start"] == 2
    assert [alert["title"] for alert in alerts["alerts"]] == ["start 2"]
    assert list(run.news()) == []
    monkeypatch.setattr(following, "IDLE_SECONDS", 0.0)
    [row] = told(run, "rows")
    assert (row["step"], row["samples"]) == (6, "**The**▸ end")
    assert list(run.news()) == []


@pytest.mark.parametrize("is_longer", [True, False])
def test_a_directory_that_was_begun_anew_shows_the_new_run_alone(
    is_longer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its records are more already than those that were read, or fewer."""
    monkeypatch.setattr(following, "IDLE_SECONDS", 0.0)
    path = tmp_path / "run"
    path.mkdir()
    run = Followed(path, name="x")
    recorded(path, [run_record(), *map(train_record, range(1, 9))])
    assert [row["step"] for row in told(run, "rows")] == [*range(1, 8)]
    shutil.rmtree(path)
    assert [row["step"] for row in told(run, "rows")] == [8], "what was known is shown on"
    assert list(run.news()) == []
    path.mkdir()
    again = run_record().model_copy(update={"started": run_record().started + 99})
    last = 40 if is_longer else 3
    recorded(path, [again, *map(train_record, range(1, last + 1))])
    anew, rows, alerts = run.news()
    assert anew == {"run": "x", "anew": True}
    assert [row["step"] for row in rows["rows"]] == [*range(1, last)]
    assert {row["values"]["marks/start"] for row in rows["rows"]} == {1}
    assert [alert["title"] for alert in alerts["alerts"]] == ["start 1"]
    assert [row["step"] for row in told(run, "rows")] == [last]
    assert list(run.news()) == []


def test_records_that_are_written_again_are_the_same_run(tmp_path: Path) -> None:
    """As when `metrics.jsonl` alone was removed, or its last line was cut by a kill."""
    run = Followed(tmp_path, name="x")
    recorded(tmp_path, [run_record(), *map(train_record, range(1, 4))])
    list(run.news())
    content = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").unlink()
    assert list(run.news()) == []
    (tmp_path / "metrics.jsonl").write_bytes(content + b'{"kind": "tra')
    assert list(run.news()) == []
    recorded(tmp_path, [train_record(4)])
    assert [row["step"] for row in told(run, "rows")] == [3]


def test_the_bad_step_and_the_bad_node_are_told(tmp_path: Path) -> None:
    recorded(tmp_path, [run_record(), train_record(1), LeftOutRecord(step=2, reason="not finite")])
    verdict = Verdict(
        kind="dead", rank=3, node="node2", step=2, sentence="rank 3 on node2 was killed by signal 9"
    )
    attempt = Attempt(
        started=1.7e9, ended=1.7e9 + 9, keeper="k", num_ranks=4, status=137, verdict=verdict
    )
    (tmp_path / ATTEMPTS_NAME).write_text(attempt.model_dump_json() + "\n")
    use = HardwareUse(
        time=1.7e9, node="node2", processor_fraction=0.5, memory_bytes=1, memory_fraction=0.25,
        read_bytes=0, written_bytes=2**20 * 15, sent_bytes=0, received_bytes=0, seconds=15.0,
        gpus=[GpuUse(busy_fraction=0.9, memory_bytes=2**30, celsius=71.0, watts=None)],
    )  # fmt: skip
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware/node2.jsonl").write_text(use.model_dump_json() + "\n")
    run = Followed(tmp_path, name="x")
    messages = list(run.news())
    alerts = [alert for message in messages for alert in message.get("alerts", [])]
    bad = [(alert["title"], alert["step"]) for alert in alerts if alert["level"] == "error"]
    assert bad == [("step 2 is left out", 2), ("dead: rank 3 on node2", 2)]
    [hardware] = [each for message in messages for each in message.get("hardware", [])]
    assert hardware["values"]["processor/node2"] == 0.5
    assert hardware["values"]["disk_mib_per_second/node2"] == 1.0
    assert hardware["values"]["gpu_celsius/node2.0"] == 71.0
    assert list(run.news()) == []


@pytest.mark.parametrize("seed", range(2))
def test_thinning_loses_no_extreme(seed: int) -> None:
    """Brute force over stretches of as many steps."""
    chance, total = random.Random(seed), 5_000
    names = ("train/loss", "train/gradient_norm", "speed/step_seconds")
    rows = [
        Row(step=step, values={name: chance.random() for name in names})
        for step in range(1, total + 1)
    ]
    for step in range(20, total, 20):
        rows[step - 1].values["norm/decoder.blocks.0"] = chance.random()
    rows[777].values["train/loss"] = math.nan
    rows[3000].values["train/left_out"] = 3001
    thinning = Thinning(total_steps=total)
    shown = [kept for row in rows for kept in thinning.add(row)] + thinning.rest()
    steps = [row.step for row in shown]
    assert steps == sorted(set(steps))
    assert len(shown) <= 5 * MOST_BUCKETS + 10
    assert sum("norm/decoder.blocks.0" in row.values for row in shown) >= 140
    assert steps[-1] == total
    assert {778, 3001} <= set(steps)
    size = math.ceil(total / MOST_BUCKETS)
    for start in range(0, total, size):
        bucket = [row for row in rows if start <= row.step < start + size]
        for name in names:
            high = max(
                bucket,
                key=lambda row: math.inf if math.isnan(row.values[name]) else row.values[name],
            )
            assert high.step in steps


def test_short_runs_keep_all() -> None:
    thinning = Thinning(total_steps=500)
    assert all(thinning.add(Row(step=step)) for step in range(500))


def test_what_is_no_run_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dashboard.main([str(tmp_path / "a"), str(tmp_path / "b")]) == ExitStatus.MISTAKE
    said = capsys.readouterr().err
    assert f"{tmp_path}/a is no run" in said
    assert f"{tmp_path}/b is no run" in said


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    paths = [tmp_path / name for name in ("a/run", "b/run", "c", "c")]
    runs = dashboard.followed_runs(paths)
    assert [run._name for run in runs] == ["a/run", "b/run", "c"]


def test_validation_stays(tmp_path: Path) -> None:
    recorded(
        tmp_path,
        [
            run_record(total_steps=10_000),
            *(
                record
                for step in range(1, 400)
                for record in (
                    [train_record(step), validation_record(step)]
                    if step % 100 == 0
                    else [train_record(step)]
                )
            ),
        ],
    )
    rows = told(Followed(tmp_path, name="x"), "rows")
    assert [row["step"] for row in rows if "validation/loss" in row["values"]] == [100, 200, 300]
    assert len(rows) < 40


def test_what_is_damaged_or_not_to_be_read_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PIECE_BYTES", 2_000)
    path = tmp_path / "metrics.jsonl"
    path.mkdir()  # as good as any error of the system
    run = Followed(tmp_path, name="x")
    assert list(run.news()) == []
    path.rmdir()
    recorded(tmp_path, [run_record(), train_record(1)])
    with path.open("ab") as file:
        file.write(bytes(10_000) + b"\n")  # a disk that was full, or lost power
    recorded(tmp_path, [train_record(2), train_record(3)])
    verdict = Verdict(kind="dead", sentence="dead")
    attempt = Attempt(started=1.7e9, ended=1.7e9, num_ranks=1, status=1, verdict=verdict)
    line = attempt.model_dump_json()
    absurd = line.replace('"ended":1700000000.0', '"ended":1e18')
    assert absurd != line
    (tmp_path / ATTEMPTS_NAME).write_text(f"{absurd}\n{{}}\n{line}\n")
    messages = [message for _ in range(9) for message in run.news()]
    assert [row["step"] for each in messages for row in each.get("rows", [])] == [1, 2]
    alerts = [alert["title"] for each in messages for alert in each.get("alerts", [])]
    assert sorted(alerts) == ["dead", "start 1"]


def test_all_runs_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dashboard.main([]) == ExitStatus.MISTAKE
    assert "runs/ holds no run: name the directory of one" in capsys.readouterr().err
    for name in ("a b", "c=d 'é'"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    found = dashboard.followed_runs(dashboard.runs_in(Path("runs")))
    assert sorted(run._name for run in found) == ["a b", "c=d 'é'"]


def test_nothing_is_sent_elsewhere() -> None:
    variables = {"TRACKIO_DATASET_ID": "x", "TRACKIO_DIR": "y", "HF_TOKEN": "z", "PATH": "p"}
    found = dashboard.kept_here(variables, directory="d")
    assert (found["PATH"], found["TRACKIO_DIR"]) == ("p", "d")
    assert not {"TRACKIO_DATASET_ID", "HF_TOKEN"} & {*found}
