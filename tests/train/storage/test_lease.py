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

from tests.lab_fixtures import place_at
from train.errors import InUseError, StorageError
from train.storage.holder import Holder
from train.storage.lease import Lease, take_those_there
from train.storage.place import Place

PERIOD_SECONDS = 0.1


@pytest.fixture(params=["here", "in a store"])
def place(request: pytest.FixtureRequest) -> Place:
    return place_at(request.param, "lease", request)


def lease(place: Place) -> Lease:
    return Lease(place, instead="choose another place")


def of_this_process(place: str = "") -> Holder:
    return Holder.of_this_process(place, renewed_every_seconds=PERIOD_SECONDS)


def left_by(place: Place, *, number: int | str = 1, **about: Any) -> Place:
    """The file of a process of another host."""
    known = {"kernel": "another", "host": "node9", "job": "", "restarts": 0}
    known |= {"renewed_every_seconds": PERIOD_SECONDS} | about
    holder = of_this_process().model_copy(update=known)
    file = place / f".lock.{number}"
    file.write(holder.model_dump_json().encode())
    return file


def test_one_has_it_and_gives_it_back(place: Place) -> None:
    first, second = lease(place), lease(place)
    take_those_there([second])
    assert place.names() == [], "only what is about to begin makes a directory"
    with first:
        first.take()
        first.take()
        assert place.names() == [".lock.1"]
        held = (
            rf"in use by another process, pid {os.getpid()} of .*/.lock.1\), until it ends or "
            "has not renewed that for 60 s: wait until it ends, or choose another place$"
        )
        with pytest.raises(InUseError, match=held):
            take_those_there([second])
        first.check()
    for _ in range(2):
        assert place.names() == []
        take_those_there([second])
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
        about["kernel"] = of_this_process().kernel
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
    assert [name for name in place.names() if name != ".lock.1"] == []


def test_who_was_taken_over_stops(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.storage.lease.RENEWED_EVERY_SECONDS", PERIOD_SECONDS)
    first = lease(place)
    first.take()
    alive = (place / ".lock.1").read()
    deadline = time.monotonic() + 60
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


def test_who_slept_sees_that_others_were_here(place: Place) -> None:
    """However long ago they ended, and though the newest is as old as its own."""
    sleeper, other = lease(place), lease(place)
    sleeper.take()
    asleep(sleeper)
    with other:
        other.take()
    assert place.names() == []
    with pytest.raises(InUseError, match=r"\.lock\.1 is gone, .* another one has been there"):
        sleeper.check()
    sleeper.fault = None
    with other:
        other.take()
        with pytest.raises(InUseError, match="taken over"):
            sleeper.check()
    sleeper.release()
    assert place.names() == []


def asleep(sleeper: Lease) -> None:
    """As on another host, which does not renew it."""
    file = sleeper.file
    about = json.loads(file.read()) | {"kernel": "another", "renewed_every_seconds": PERIOD_SECONDS}
    file.write(json.dumps(about).encode())
    sleeper.renewed_at -= 60


def test_a_file_that_is_removed_is_written_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can have been here since it was renewed, so nobody has taken it over."""
    monkeypatch.setattr("train.storage.lease.RENEWED_EVERY_SECONDS", PERIOD_SECONDS)
    with lease(place) as holder:
        holder.take()
        holder.file.remove()
        holder.check()
        deadline = time.monotonic() + 60
        while holder.file.find() is None:
            assert time.monotonic() < deadline
            time.sleep(PERIOD_SECONDS / 4)
        with lease(place) as other, pytest.raises(InUseError, match="in use by another process"):
            other.take()


def test_a_slow_newcomer_leaves_a_faster_ones(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by(place, kernel=of_this_process().kernel, started="1")
    slow, fast = lease(place), lease(place)
    names = type(place).names
    seen: list[list[str]] = []

    def listed(directory: Place) -> list[str]:
        found = names(directory)
        seen.append(found)
        if len(seen) == 3:  # `slow` has the file of its number, and clears away
            fast._claim(3)  # pyright: ignore[reportPrivateUsage]
            return names(directory)
        return found

    monkeypatch.setattr(type(place), "names", listed)
    slow.take()
    assert place.names() == [".lock.3"]
    fast.check()
    with pytest.raises(InUseError, match="was taken over by another"):
        slow.check()
    fast.release()


@pytest.mark.parametrize("number", ["3", "007", "1" * 18, "999999999"])
def test_what_no_process_left(place: Place, number: str) -> None:
    """Ends in a lease or a sentence, not in turning for ever."""
    if number == "3" and place.is_remote:
        (place / ".lock.3" / "x").write(b"")
    elif number == "3":
        Path(place).mkdir()
        (Path(place) / ".lock.3").symlink_to("/nowhere")
    else:
        left_by(place, number=number, kernel=of_this_process().kernel, started="1")
    with lease(place) as mine:
        if number in ("3", "999999999"):
            with pytest.raises(StorageError, match=rf"{place}/.lock.{number} .*: remove it$"):
                mine.take()
        else:
            mine.take()
            assert ".lock.1" in place.names()


def test_a_process_that_is_hidden_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mount of /proc hides those of other users."""

    def hidden(path: Path, **_: object) -> str:
        raise FileNotFoundError(path)

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = of_this_process("/a")
    living, dead = (
        here.model_copy(update={"pid": pid, "started": "1"}) for pid in (os.getppid(), ended.pid)
    )
    assert here.lives(here) is True
    assert here.model_copy(update={"place": "/b"}).lives(here) is None, "a copy of its directory"
    assert living.lives(here) is False, "its number is another's by now"
    monkeypatch.setattr(Path, "read_text", hidden)
    assert living.lives(here) is None
    assert dead.lives(here) is False


def test_a_newcomer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from train.storage.place import Place; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
        "from train.storage.lease import Lease; Lease(Place.parse(sys.argv[1]), instead='').take()"
    )
    file = left_by(Place.of(tmp_path), kernel=of_this_process().kernel, started="1")
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "File too large" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_all_are_watched_at_the_same_time(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched_at_claims: list[int] = []
    claim = Lease._claim

    def noted(self: Lease, number: int) -> None:
        watched_at_claims.append(sum("waiting" in message for message in caplog.messages))
        claim(self, number)

    monkeypatch.setattr(Lease, "_claim", noted)
    mine = [lease(place), lease(Place.of(tmp_path / "other"))]
    for each in mine:
        left_by(each.directory, renewed_every_seconds=0.3)
    take_those_there(mine)
    assert watched_at_claims == [2, 2]
    for each in mine:
        each.check()
        each.release()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOGNAME", "\udcff"),
        ("LOGNAME", "a\nb\x1b[31m"),
        ("SLURM_JOB_ID", "\udcff"),
        ("SLURM_JOB_ID", "7" * 70_000),
        ("SLURM_RESTART_COUNT", "9" * 5_000),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_any_environment(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    place = Place.of(tmp_path)
    with lease(place) as mine:
        mine.take()
        with pytest.raises(
            InUseError, match=rf"in use by another process, pid {os.getpid()} "
        ) as e:
            lease(place).take()
        assert str(e.value).isprintable()
        assert len(str(e.value)) < 1000


def test_any_fault_of_a_renewal_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("train.storage.lease.RENEWED_EVERY_SECONDS", PERIOD_SECONDS / 10)
    place = Place.of(tmp_path)
    write, faults = type(place).write, iter([OSError(), MemoryError(), ValueError("no")])

    def fails(file: Place, data: bytes) -> None:
        for fault in faults:
            raise fault
        write(file, data)

    with lease(place) as mine:
        for _ in range(2):  # taken again it is renewed again
            mine.take()
            alive = mine.file.read()
            monkeypatch.setattr(type(place), "write", fails)
            deadline = time.monotonic() + 60
            while mine.file.read() == alive:
                assert time.monotonic() < deadline
            mine.release()
    assert [message for message in caplog.messages if "cannot be renewed" in message] == [
        f"{place}/.lock.1 cannot be renewed: MemoryError(); it is tried again"
    ]


def test_a_store_that_is_away_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.storage.lease._GIVEN_BACK_WITHIN_SECONDS", 0.2)
    mine, answers, answered = lease(Place.of(tmp_path)), threading.Event(), threading.Event()
    mine.take()

    def hangs(*_: object) -> None:
        answers.wait(60)
        answered.set()

    monkeypatch.setattr(type(mine.directory), "remove", hangs)
    mine.release()
    assert not answered.is_set()
    answers.set()
    assert answered.wait(60), "it was asked"


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
