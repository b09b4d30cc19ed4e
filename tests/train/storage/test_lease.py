"""Of several processes one may write to a place: here and in a store."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.lab_fixtures import S3Lab
from train.errors import InUseError
from train.storage.lease import Holder, Lease
from train.storage.place import Place

PERIOD_SECONDS = 0.1


@pytest.fixture(params=["here", "in a store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "here":
        return Place.of(tmp_path / "place")
    lab: S3Lab = request.getfixturevalue("s3_lab")
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    return Place.parse(f"s3://{lab.bucket}/lease/{tmp_path.name}")


def lease(place: Place) -> Lease:
    return Lease(place, instead="choose another place")


def left_by(place: Place, *, number: int = 1, **about: Any) -> Place:
    """The file of a process of another host."""
    known = {"kernel": "another", "host": "node9", "job": "", "restarts": 0}
    known |= {"renewed_every_seconds": PERIOD_SECONDS} | about
    holder = Holder.of_this_process().model_copy(update=known)
    file = place / f".lock.{number}"
    file.write(holder.model_dump_json().encode())
    return file


def test_one_has_it_and_gives_it_back(place: Place) -> None:
    first, second = lease(place), lease(place)
    second.take_if_there()
    assert place.names() == [], "only what is about to begin makes a directory"
    with first:
        first.take()
        first.take()
        assert place.names() == [".lock.1"]
        held = rf"in use by another process, pid {os.getpid()} of .*/.lock.1\): wait .* another pl"
        with pytest.raises(InUseError, match=held):
            second.take_if_there()
        first.check()
    assert place.names() == []
    second.take_if_there()
    if not place.is_remote:  # its directory is there
        assert place.names() == [".lock.1"]
    second.take()
    second.release()
    assert place.names() == []


@pytest.mark.parametrize(
    ("about", "environment"),
    [
        ({"kernel": None, "started": "1"}, {}),  # its pid belongs to another process now
        ({"job": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
    ],
    ids=["dead", "requeued"],
)
def test_who_is_known_to_be_dead_is_not_waited_for(
    place: Place,
    about: dict[str, Any],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "kernel" in about:
        about["kernel"] = Holder.of_this_process().kernel
    left_by(place, renewed_every_seconds=60.0, number=4, **about)
    with lease(place) as mine:
        mine.take()
        assert not caplog.records
        assert place.names() == [".lock.5"]


def test_a_killed_process_is_known_to_be_dead(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from train.storage.lease import Lease; "
        "from train.storage.place import Place; "
        "Lease(Place.of(Path(sys.argv[1])), instead='').take(); print('taken', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"taken\n"
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(InUseError, match=f"pid {holder.pid} of"):
        lease(Place.of(tmp_path)).take()
    holder.kill()
    # Nobody has asked how it ended: its number is still taken.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with lease(Place.of(tmp_path)) as mine:
        mine.take()
    holder.wait()


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"\xff", b'{"id": 1}', b"[" * 5000], ids=lambda c: str(c)[:9]
)
def test_who_may_be_dead_is_watched(
    place: Place,
    content: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("train.storage.lease.RENEWED_EVERY_SECONDS", PERIOD_SECONDS)
    file = left_by(place, job="7")
    if content is not None:
        file.write(content)
    with lease(place) as mine:
        mine.take()
        (told,) = caplog.messages
        assert f"{place} was held by " in told
        assert ("on node9 since" in told) == (content is None)
        assert "waiting 0 s to see whether that lives" in told
        assert place.names() == [".lock.2"]


@pytest.mark.parametrize("job", ["", "7"], ids=["", "same job, not requeued"])
def test_who_lives_elsewhere_keeps_it(
    place: Place, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    renewals = iter(range(1000))
    file = left_by(place, job=job)

    def renew(stop: threading.Event) -> None:
        while not stop.wait(PERIOD_SECONDS):
            about = json.loads(file.read()) | {"renewals": next(renewals)}
            file.write(json.dumps(about).encode())

    with beside(renew), pytest.raises(InUseError, match="on node9 since"):
        lease(place).take()


def test_one_of_many_newcomers_gets_it(place: Place) -> None:
    left_by(place)
    taken: list[Lease] = []
    mine = [lease(place) for _ in range(6)]

    def take(each: Lease) -> None:
        try:
            each.take()
        except InUseError:
            return
        taken.append(each)

    threads = [threading.Thread(target=take, args=(each,)) for each in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one,) = taken
    one.check()
    one.release()
    assert place.names() == []


def test_who_was_taken_over_stops(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.storage.lease.RENEWED_EVERY_SECONDS", PERIOD_SECONDS)
    first = lease(place)
    first.take()
    alive = (place / ".lock.1").read()
    deadline = time.monotonic() + 20
    while (place / ".lock.1").read() == alive:
        assert time.monotonic() < deadline
    first.check()
    left_by(place, number=2)
    while first.fault is None:  # seen when it is to be renewed
        assert time.monotonic() < deadline
    with pytest.raises(InUseError, match=r"was taken over by another process, pid .* on node9"):
        first.check()
    first.release()
    assert ".lock.2" in place.names(), "what is another's stays"


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Generator[None]:
    """Do something meanwhile."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
