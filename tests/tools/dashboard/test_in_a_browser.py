"""What a person sees: the dashboard and the report of runs that did not go well.

With `--update-golden` the pictures in `docs/` are made anew.
"""

import json
import math
import os
import random
import socket
from pathlib import Path
from shutil import copyfile

import pytest

from tests.browser import browser
from tests.tools.dashboard.test_following import recorded
from tests.train.records import run_config, run_record, train_record, validation_record
from tools import report
from tools.dashboard import __main__ as dashboard
from tools.dashboard import following
from tools.keep.attempt import ATTEMPTS_NAME, Attempt, Verdict
from train.config_files import dump
from train.watch.hardware import HardwareUse
from train.watch.metrics import LeftOutRecord, NoteRecord, Record, SampleRecord

DOCS = Path(__file__).parents[3] / "docs"
STARTED = 1_764_201_600.0  # 27 November 2025
BAD_STEP, DEAD_AT, STEPS = 233, 320, 400


def loss(step: int, chance: random.Random) -> float:
    return 4.4 + 4.6 * math.exp(-step / 90) + chance.gauss(0, 0.04)


def write_troubled_run(path: Path) -> Path:
    """A run of four ranks on two nodes: a spike is left out, a rank dies, and it goes on."""
    chance = random.Random(1)
    path.mkdir()
    (path / "config.yaml").write_text(dump(run_config(path, "name=metalm")))

    def step_record(step: int) -> Record:
        now = loss(step, chance)
        return train_record(
            step,
            **{"loss": now, "first_of_span_loss": now + 0.3, "other_loss": now - 0.05},
            **{"gradient_norm": 1 + chance.random() / 3, "step_seconds": 1 + chance.random() / 20},
            learning_rate=3e-4 * min(1.0, step / 40),
        )

    def start(step: int) -> Record:
        facts = {"name": "metalm", "num_ranks": 4, "machine": "64 × a processor"}
        started = STARTED + 1.05 * step
        return run_record(step, STEPS).model_copy(update={**facts, "started": started})

    records: list[Record] = [start(0), validation_record(0, 9.0)]
    for step in range(1, DEAD_AT + 1):
        records.append(step_record(step))
        if step % 50 == 0:
            records.append(validation_record(step, loss(step, chance) + 0.05))
        if step == BAD_STEP:
            records += [
                train_record(step, loss=11.5, gradient_norm=40.0, step_seconds=1.0),
                LeftOutRecord(step=step, reason="spike"),
                NoteRecord(step=step, text=f"step {step} is a spike: back to step 200"),
            ]
    records.append(start(300))
    for step in range(301, STEPS + 1):
        records.append(step_record(step))
        if step % 50 == 0:
            records.append(validation_record(step, loss(step, chance) + 0.05))
    records.append(SampleRecord(step=STEPS, prompt="The kernel", text=" keeps a list of pages"))
    recorded(path, records)
    verdict = Verdict(
        kind="dead", rank=3, node="node2", section="step", step=DEAD_AT,
        sentence=f"rank 3 on node2 died of signal 9 in step {DEAD_AT}",
    )  # fmt: skip
    attempt = Attempt(
        started=STARTED, ended=STARTED + 340, keeper="node1 1 1", nodes=["node1", "node2"],
        num_ranks=4, first_step=0, last_step=DEAD_AT, status=137, verdict=verdict,
    )  # fmt: skip
    (path / ATTEMPTS_NAME).write_text(attempt.model_dump_json() + "\n")
    (path / "hardware").mkdir()
    for node in ("node1", "node2"):
        uses = [
            HardwareUse(
                time=STARTED + seconds, node=node, memory_bytes=2**34, memory_fraction=0.4,
                processor_fraction=0.1 if node == "node2" and 330 < seconds < 400 else 0.95,
                read_bytes=2**24, written_bytes=2**22, sent_bytes=2**28, received_bytes=2**28,
                seconds=15.0, gpus=[],
            )
            for seconds in range(0, 450, 60)
        ]  # fmt: skip
        lines = "".join(use.model_dump_json() + "\n" for use in uses)
        (path / f"hardware/{node}.jsonl").write_text(lines)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def kept(picture: Path, request: pytest.FixtureRequest) -> None:
    """A picture shows something; it becomes the one in `docs/` if that is asked for."""
    assert picture.stat().st_size > 20_000
    if request.config.getoption("--update-golden", default=False):
        copyfile(picture, DOCS / picture.name)


def test_the_report_shows_the_bad_step_and_the_bad_node(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = write_troubled_run(tmp_path / "run")
    report.main([str(run)])
    with browser(height=1300) as page:
        seconds, text = page.shown(
            f"file://{run}/report.html",
            ready="document.querySelectorAll('.mark.bad').length > 1",
            picture=tmp_path / "report.png",
        )
    assert seconds < 30
    assert f"step {BAD_STEP} counts for nothing" in text
    assert "dead: rank 3 on node2" in text
    # Before anything else that is to be read.
    assert text.index("What went wrong") < text.index("Loss, nats a token")
    kept(tmp_path / "report.png", request)


@pytest.mark.long
def test_the_dashboard_shows_the_bad_step_and_the_bad_node(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_dashboard()
    monkeypatch.setattr(following, "IDLE_SECONDS", 0.0)
    runs = dashboard.followed_runs([write_troubled_run(tmp_path / "metalm")])
    port = free_port()
    with dashboard.shown(port) as process, browser() as page:
        # Nobody reads what it prints once it is ready: a pipe would be full one day.
        assert os.readlink(f"/proc/{process.pid}/fd/1") == os.devnull
        while dashboard.tell(process, runs):
            pass
        _, text = page.shown(
            f"http://127.0.0.1:{port}/?project={dashboard.PROJECT}",
            ready="document.body.innerText.includes('Alerts') "
            "&& document.querySelectorAll('canvas').length > 1",
            picture=tmp_path / "dashboard.png",
        )
    assert f"step {BAD_STEP} is left out" in text
    assert "dead: rank 3 on node2" in text
    kept(tmp_path / "dashboard.png", request)


@pytest.mark.long
def test_fifty_long_runs_open_at_once(tmp_path: Path) -> None:
    require_dashboard()
    for number in range(50):
        path = tmp_path / f"run_{number:02}"
        path.mkdir()
        (path / "config.yaml").touch()
        write_fast(path / "metrics.jsonl", seed=number, steps=20_000)
    runs = dashboard.followed_runs(sorted(tmp_path.iterdir()))
    port = free_port()
    with dashboard.shown(port) as process, browser() as page:
        while dashboard.tell(process, runs):
            pass
        opened = [
            page.shown(
                f"http://127.0.0.1:{port}/?project={dashboard.PROJECT}",
                ready="document.querySelectorAll('canvas').length > 1",
            )[0]
            for _ in range(3)
        ]
    assert min(opened) <= 3.0, opened


def write_fast(path: Path, *, seed: int, steps: int) -> None:
    """As a run would record so many steps, without a second of it."""
    chance = random.Random(seed)
    start = run_record(0, steps).model_copy(update={"name": path.parent.name})
    record = train_record(1).model_dump(mode="json")
    with path.open("w") as file:
        file.write(start.model_dump_json() + "\n")
        for step in range(1, steps + 1):
            values = record | {"step": step, "loss": 9 * step**-0.08 + chance.gauss(0, 0.05)}
            file.write(json.dumps(values) + "\n")


def require_dashboard() -> None:
    """Skip a test where trackio is not installed; in CI it has to be."""
    if dashboard.PYTHON.exists():
        return
    reason = "needs trackio: make .venv/dashboard/installed"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
