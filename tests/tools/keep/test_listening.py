"""What ranks tell a keeper over a real connection, and what strangers try."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.warm import REPOSITORY
from tools.keep.deadline import ENOUGH, ONCE_FACTOR, SPARE_FACTOR, Deadlines
from tools.keep.listening import Listener, Told
from tools.keep.shell import RANK, RANK_OF_AGENT
from train.watch.heartbeat import ADDRESS, NEEDED, STANDBY, Heartbeat, Section


def heard(listener: Listener, seconds: float = 2.0) -> None:
    """Take all that has been sent."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and listener.ranks == {}:
        listener.listen(0.05)
    for _ in range(20):
        listener.listen(0.01)


def test_what_a_rank_tells() -> None:
    with Listener() as listener:
        beat = Heartbeat(listener.address, rank=0)
        beat.begin(run_directory="run", step=5, patience_seconds=7.0)
        for section in (Section.READ, Section.STEP, Section.SAVE):
            beat.enter(section, step=6)
        heard(listener)
        told = listener.ranks[0]
        assert (told.pid, told.host) == (os.getpid(), socket.gethostname())
        assert (told.section, told.step) == (Section.SAVE, 6)
        assert (listener.first_step, listener.last_step) == (5, 6)
        assert listener.patience_seconds == 7.0
        assert listener.run_directory is not None
        assert listener.run_directory.is_absolute()
        assert listener.counts == {"start": 1, "read": 1, "step": 1}
        beat.tell(KeyError("odd"))
        beat.end(1)
        heard(listener)
        assert told.error[:2] == ["KeyError", "LookupError"]
        assert (told.message, told.status, told.ended) == ("'odd'", 1, None)
        assert not beat.keeper_has_gone


def test_a_rank_s_own_time_is_that_of_its_steps_without_its_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, waited = [100.0], [7.0]
    monkeypatch.setattr("train.watch.heartbeat.time.perf_counter", lambda: now[0])
    found: list[tuple[int, int, float]] = []
    with Listener() as listener:

        def add(rank: int, *, step: int, seconds: float) -> None:
            found.append((rank, step, seconds))

        monkeypatch.setattr(listener.stragglers, "add", add)
        beat = Heartbeat(listener.address, rank=3)
        beat.count_own_time(lambda: waited[0], stage=0)
        for step in (1, 2, 3):
            for section, seconds, waits in (
                (Section.READ, 0.5, 0.0), (Section.STEP, 2.0, 0.75), (Section.SAVE, 9.0, 3.0),
            ):  # fmt: skip
                beat.enter(section, step=step)
                now[0] += seconds * step
                waited[0] += waits * step
        heard(listener)
    # Of the step before the first there is nothing, and the last one has not ended.
    assert found == [(3, 0, 0.0), (3, 1, 1.25), (3, 2, 2.5)]


SPEAKS_LATE = """\
import os, sys
sys.stdin.readline()
from train.watch.heartbeat import CONNECTION, Heartbeat, Section
beat = Heartbeat.of_environment()
assert CONNECTION not in os.environ
beat.enter(Section.READ, step=6)
sys.stdin.readline()
"""


@pytest.fixture
def late(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Listener, subprocess.Popen[bytes]]]:
    """A rank that speaks once it is told to, and who listens to it."""
    with Listener() as listener:
        environment = {**os.environ, "RANK": "3", ADDRESS: listener.address}
        rank = subprocess.Popen(
            [*request.param, sys.executable, "-c", SPEAKS_LATE],
            env=environment, cwd=REPOSITORY, stdin=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield listener, rank
        finally:
            rank.kill()
            rank.wait()


def until(condition: Callable[[], bool], listener: Listener) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        listener.listen(0.05)
        assert time.monotonic() < deadline


def told_of(listener: Listener) -> Told:
    until(lambda: 3 in listener.ranks, listener)
    return listener.ranks[3]


@pytest.mark.parametrize("late", [RANK], indirect=True)
def test_a_rank_that_dies_before_it_can_speak(
    late: tuple[Listener, subprocess.Popen[bytes]],
) -> None:
    listener, rank = late
    told = told_of(listener)
    assert (told.pid, told.host, told.has_spoken) == (rank.pid, socket.gethostname(), False)
    assert told.ended is None
    rank.kill()
    until(lambda: told.ended is not None, listener)


# One whose container hands nothing on opens a connection of its own.
CLOSED = ("bash", "-c", 'exec {SEMICAUSAL_KEEPER_CONNECTION}>&-; exec "$@"', "container")


@pytest.mark.parametrize(
    ("late", "are_one"),
    [(RANK, True), (RANK_OF_AGENT, True), ((*RANK, *CLOSED), False)],
    indirect=["late"],
)
def test_a_rank_goes_on_where_its_shell_has_begun(
    late: tuple[Listener, subprocess.Popen[bytes]], are_one: bool
) -> None:
    listener, rank = late
    first = told_of(listener)
    assert rank.stdin is not None
    rank.stdin.write(b"speak\n")
    rank.stdin.flush()
    until(lambda: listener.last_step == 6, listener)
    told = listener.ranks[3]
    assert (told.has_spoken, told.ended, told is first) == (True, None, are_one)
    rank.stdin.write(b"leave\n")
    rank.stdin.flush()
    until(lambda: told.ended is not None, listener)


def test_the_order_of_ends() -> None:
    with Listener() as listener:
        first, second = (Heartbeat(listener.address, rank=rank) for rank in (1, 0))
        heard(listener)
        first.tell(ValueError("first"))
        heard(listener)
        second.tell(ValueError("second"))
        heard(listener)
        assert listener.ranks[1].order < listener.ranks[0].order


def test_a_rank_notices_that_its_keeper_has_gone() -> None:
    with Listener() as listener:
        beat = Heartbeat(listener.address, rank=0)
        heard(listener)
    until = time.monotonic() + 60
    while not beat.keeper_has_gone:
        beat.enter(Section.READ, step=1)
        assert time.monotonic() < until
    beat.enter(Section.STEP, step=1)
    beat.tell(ValueError("nobody hears it"))
    beat.end(0)


def test_without_a_keeper_nothing_is_told() -> None:
    beat = Heartbeat(None, rank=0)
    beat.begin(run_directory="run", step=0, patience_seconds=0.0)
    beat.enter(Section.READ, step=1)
    assert not beat.keeper_has_gone


def test_a_keeper_that_cannot_be_reached_stops_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        beat = Heartbeat(f"127.0.0.1:{closed.getsockname()[1]}:secret", rank=0)
    beat.enter(Section.READ, step=1)
    assert not beat.keeper_has_gone
    assert "is not reached, and does not watch this rank" in capsys.readouterr().err


@pytest.mark.timeout(120)
def test_a_keeper_that_is_frozen_holds_nobody_up() -> None:
    """Its connection's buffers are full: what is not sent waits, and is told later."""
    with Listener() as listener:
        beat = Heartbeat(listener.address, rank=0)
        for step in range(20_000):
            beat.enter(Section.STEP, step=step)
        until = time.monotonic() + 60
        while listener.last_step != 20_000:
            listener.listen(0.05)
            beat.enter(Section.STEP, step=20_000)
            assert time.monotonic() < until


def stranger(listener: Listener, data: bytes) -> bool:
    """Whether the connection of one who sends this is closed."""
    with socket.create_connection(("127.0.0.1", int(listener.address.split(":")[1]))) as speaker:
        speaker.sendall(data)
        speaker.shutdown(socket.SHUT_WR)
        for _ in range(10):
            listener.listen(0.02)
        speaker.settimeout(5)
        try:
            return speaker.recv(10) == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        json.dumps({"secret": "guessed", "rank": 0, "host": "h", "pid": 1}).encode() + b"\n",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"section": "step", "step": 3}\n',
        b"x" * 200_000,
        b"[" * 60_000 + b"\n",
        b"",
    ],
)
def test_strangers_are_not_heard(data: bytes) -> None:
    with Listener() as listener:
        assert stranger(listener, data)
        assert listener.ranks == {}


@settings(max_examples=15)
@given(st.binary(max_size=300))
def test_noise_is_not_heard(data: bytes) -> None:
    with Listener() as listener:
        assert stranger(listener, data)
        assert listener.ranks == {}


def test_a_rank_that_stands_by_waits_until_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STANDBY, "1")
    prepared: list[float] = []
    with Listener() as listener:
        beat = Heartbeat(listener.address, rank=0)

        def wait() -> None:
            beat.wait_until_needed(lambda: prepared.append(time.monotonic()))
            prepared.append(time.monotonic())

        rank = threading.Thread(target=wait, daemon=True)
        rank.start()
        heard(listener)
        time.sleep(0.2)
        assert len(prepared) == 1
        called = time.monotonic()
        listener.call()
        rank.join(5)
        assert prepared[1] >= called
        beat.enter(Section.READ, step=1)
        assert not beat.keeper_has_gone
        assert NEEDED


def test_limits_are_learned() -> None:
    deadlines = Deadlines(unknown_seconds=600, least_seconds=10)
    few = deadlines.of("step", longest_seconds={"step": 8.0}, counts={"step": ENOUGH - 1})
    assert few == 600
    known = {"step": ENOUGH, "read": ENOUGH, "save": ENOUGH}
    longest = {"step": 8.0, "read": 0.01, "save": 5000.0}
    limits = {
        name: deadlines.of(name, longest_seconds=longest, counts=known)
        for name in (*known, "validate", "end")
    }
    assert limits == {
        "step": 8.0 * SPARE_FACTOR, "read": 10, "save": 5000.0 * SPARE_FACTOR,
        "validate": 600 * ONCE_FACTOR, "end": 600 * ONCE_FACTOR,
    }  # fmt: skip
