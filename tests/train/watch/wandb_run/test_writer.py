"""W&B may be slow, away or broken: training neither waits for it nor hears of it."""

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from wandb.sdk.data_types._private import MEDIA_TMP

from tests.train.records import run_config, train_record
from tests.train.runs import Rank
from tests.train.watch.wandb_run.offline import WandbRecord, history, records
from tools.ranks import run_module
from train.watch.config import WatchConfig
from train.watch.wandb_run.switches import mode_of, run_id_of
from train.watch.wandb_run.writer import WandbWriter

KEY = "0123456789abcdef" * 2 + "01234567"
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})

PROGRAM = """
import json, sys, threading, time
from pathlib import Path
{before}
from tests.train.records import run_config, train_record
from train.watch.wandb_run import writer as wandb_writer
from train.watch.wandb_run.switches import run_id_of
from train.watch.metrics import SampleRecord, ScoreRecord
config = run_config(Path({directory!r}), "watch.wandb={mode}")
has_written, waits = threading.Event(), []
made = wandb_writer.Session
def later(*arguments, **options):
    waits.append(has_written.wait(30))
    return made(*arguments, **options)
wandb_writer.Session = later
wandb_writer.INIT_SECONDS, wandb_writer.FINISH_SECONDS = 2.0, {bound}
writer = wandb_writer.WandbWriter(config, run_id=run_id_of(None), mode="{mode}")
for step in range(1, 101):
    writer.write(train_record(step, loss=1.0 / step))
writer.write(SampleRecord(step=100, prompt="prompt", text="text"))
writer.write(ScoreRecord(
    step=100, task="mood", metric="f1", score=0.5, standard_error=0.1, rows=9, seconds=1.0))
has_written.set()
{during}
writer.finish()
print(json.dumps({{"is_waited_for": not all(waits), "notes": writer.take_notes()}}))
"""

SIGNAL = """
import signal, psutil
services = []
while not services:
    time.sleep(0.05)
    services = [c for c in psutil.Process().children() if c.name() == "wandb-core"]
time.sleep(1.0)
for service in services:
    service.send_signal(signal.{})
"""


def run_program(
    place: str, arguments: list[str], output: Path, environment: dict[str, str]
) -> None:
    """What lies at a place as `program.py`, all of this process that calls it."""
    # Whoever of those that were forked ends first removes what wandb has made when imported.
    os.makedirs(MEDIA_TMP.name, exist_ok=True)
    sys.path.insert(0, place)
    run_module("program", arguments, output, environment)


def run_writer(
    directory: Path,
    *,
    mode: str,
    bound: float = 100.0,
    before: str = "",
    during: str = "",
    variables: Mapping[str, str] = NO_VARIABLES,
) -> dict:
    """Runs a writer in a process of its own, as its exit is part of what can hang."""
    program = PROGRAM.format(
        directory=str(directory), mode=mode, bound=bound, before=before, during=during
    )
    with tempfile.TemporaryDirectory(prefix="writer-") as place:
        Path(place, "program.py").write_text(program)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        process = Rank([], Path(place, "output"), environment, partial(run_program, place))
        code = process.wait(300)
        process.send_signal(signal.SIGKILL)  # one that hangs, perhaps at its exit
        output = process.output()
    assert code == 0, output
    assert KEY not in output
    line, _, rest = output.partition("\n")
    result = json.loads(line)
    # And nothing besides, but for wandb's word on a service that ends while it is told things.
    assert not rest or rest.splitlines()[-1].startswith("ConnectionResetError: "), output
    assert not result.get("is_waited_for"), "wandb began only when all was written"
    return result


def test_offline_keeps_our_steps(tmp_path: Path) -> None:
    result = run_writer(tmp_path, mode="offline")

    assert result["notes"] == []
    rows = [row for row in history(tmp_path) if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 101))
    assert [row["train/loss"] for row in rows] == [1.0 / step for step in range(1, 101)]
    assert any("samples" in str(row) and row["step"] == 100 for row in history(tmp_path))
    assert [row["score/mood"] for row in history(tmp_path) if "score/mood" in row] == [0.5]


def test_its_own_switches_hold(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere/deeper"
    names = {"DIR": str(elsewhere), "RUN_ID": "mine1234", "PROJECT": "theirs", "NAME": "called"}
    variables = {f"WANDB_{name}": value for name, value in names.items()}
    result = run_writer(tmp_path / "run", mode="offline", variables=variables)
    assert result["notes"] == []
    assert not (tmp_path / "run/wandb").exists()
    [path] = elsewhere.glob("wandb/offline-run-*-mine1234/run-mine1234.wandb")
    found = [WandbRecord.FromString(payload) for payload in records(path.read_bytes())]
    [run] = [each.run for each in found if each.WhichOneof("record_type") == "run"][-1:]
    assert (run.project, run.display_name) == ("theirs", "called")


@pytest.mark.parametrize(
    ("configured", "variables", "mode", "said"),
    [
        (None, {}, "offline", None),
        (None, {"MODE": "online"}, "online", None),
        (None, {"MODE": "dryrun"}, "offline", None),
        (None, {"MODE": "disabled"}, "disabled", None),
        (None, {"DISABLED": "true"}, "disabled", None),
        (None, {"DISABLED": "false", "MODE": "online"}, "online", None),
        (
            "online",
            {"MODE": "disabled"},
            "disabled",
            "WANDB_MODE=disabled, and watch.wandb is online",
        ),
        ("online", {"DISABLED": "True"}, "disabled", "WANDB_DISABLED=True, and watch.wandb is onl"),
        ("online", {"MODE": "offline"}, "offline", "W&B is offline: WANDB_MODE=offline"),
        ("offline", {"MODE": "online"}, "offline", "WANDB_MODE=online, and watch.wandb is offline"),
        ("disabled", {"MODE": "online"}, "disabled", "the lesser holds"),
        ("online", {"MODE": "online"}, "online", None),
        ("online", {"MODE": "ofline"}, "online", "WANDB_MODE=ofline is none of disabled, offline,"),
    ],
)
def test_the_one_that_sends_less_holds(
    configured: Any,
    variables: dict[str, str],
    mode: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MODE", "DISABLED"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    watch = WatchConfig() if configured is None else WatchConfig(wandb=configured)
    chosen, told = mode_of(watch)
    assert chosen == mode
    assert (told is None) == (said is None)
    assert said is None or said in str(told)


def test_a_start_may_be_a_new_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    monkeypatch.delenv("WANDB_RESUME", raising=False)
    assert run_id_of("kept") == "kept"
    assert run_id_of(None) != run_id_of(None)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert (run_id_of("kept"), run_id_of(None)) == ("kept", "mine")
    monkeypatch.setenv("WANDB_RESUME", "never")
    assert run_id_of("kept") == "mine"


def test_a_resumed_run_goes_on_under_the_same_id_and_steps(tmp_path: Path) -> None:
    run_id = run_id_of(None)
    for first_step in (1, 4):
        writer = WandbWriter(
            run_config(tmp_path, "watch.wandb=offline"), run_id=run_id, mode="offline"
        )
        for step in range(first_step, first_step + 3):
            writer.write(train_record(step))
        writer.finish()
        assert writer.take_notes() == []
        # The name of the offline directory holds the second in which the run started.
        time.sleep(1.1)

    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == 2
    assert [row["step"] for row in history(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_without_a_server_the_run_goes_offline(tmp_path: Path) -> None:
    result = run_writer(
        tmp_path,
        mode="online",
        variables={"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY},
    )

    assert len(result["notes"]) == 1
    assert result["notes"][0].startswith("W&B is not reachable, logging offline: ")
    assert f"python -m tools.wandb_sync {tmp_path}" in result["notes"][0]
    assert len([row for row in history(tmp_path) if "train/loss" in row]) == 100


def test_a_server_that_never_answers_is_no_different(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = run_writer(
            tmp_path,
            mode="online",
            variables={"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY},
        )

    assert len(result["notes"]) == 1
    assert len([row for row in history(tmp_path) if "train/loss" in row]) == 100


def test_without_a_key_nothing_is_asked(tmp_path: Path) -> None:
    result = run_writer(
        tmp_path,
        mode="online",
        variables={"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)},
    )
    assert "No API key configured" in result["notes"][0]
    assert len([row for row in history(tmp_path) if "train/loss" in row]) == 100


def test_a_service_that_hangs_is_cut_off_and_the_process_still_exits(tmp_path: Path) -> None:
    result = run_writer(tmp_path, mode="offline", bound=3.0, during=SIGNAL.format("SIGSTOP"))

    assert result["notes"] == [
        "W&B did not finish within 3 s and was cut off; metrics.jsonl has every record"
    ]


def test_a_service_that_dies_is_replaced(tmp_path: Path) -> None:
    result = run_writer(tmp_path, mode="offline", during=SIGNAL.format("SIGKILL"))
    assert [note.split(" (")[0] for note in result["notes"]] == ["W&B's service has died"]
    rows = [row["step"] for row in history(tmp_path) if "train/loss" in row]
    assert rows == list(range(1, 101))


def test_wandb_that_cannot_even_start_is_a_note(tmp_path: Path) -> None:
    result = run_writer(tmp_path, mode="offline", before="sys.modules['wandb'] = None")
    assert [note.split(":")[0] for note in result["notes"]] == ["W&B stopped"]
    assert "metrics.jsonl has every record" in result["notes"][0]


def test_an_init_that_raises_is_a_note(tmp_path: Path) -> None:
    config = run_config(tmp_path, "watch.wandb=offline", "watch.wandb_project=a/b")
    writer = WandbWriter(config, run_id="no/such:id", mode="offline")
    writer.finish()
    notes = writer.take_notes()
    assert [note.split(":")[0] for note in notes] == ["W&B stopped"]
    assert not [thread for thread in threading.enumerate() if thread.name == "wandb-writer"]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_ending_without_finish_does_not_hang(tmp_path: Path, mode: str) -> None:
    run_writer(
        tmp_path,
        mode=mode,
        during="time.sleep(1.5); print('{}'); sys.exit(0)",
        variables={"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY},
    )
