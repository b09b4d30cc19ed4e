"""Transfers over a wire that is cut, stalled and slow, from a real S3 server."""

import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab_fixtures import S3Lab
from tests.train.storage.relay import SLOW_DOWN, Fault, relay
from tests.train.storage.wire import CONTENT, OTHER, SIZE, first, heads, lab, put, store
from train.errors import StorageError
from train.storage import client as clients
from train.storage import notices, patience
from train.storage.bucket import StorePlace, _InMemory
from train.storage.config import StorageConfig
from train.storage.patience import StoppedError
from train.storage.place import Place

__all__ = ["lab"]  # a fixture


def test_a_cut_transfer_goes_on_where_it_was(lab: S3Lab, caplog: pytest.LogCaptureFixture) -> None:
    cut = Fault(cut_after_bytes=1 << 20)
    with relay(lab.environment["S3_ENDPOINT_URL"], first(cut, cut)) as wire:
        assert store(wire.url).read() == CONTENT
        assert wire.answered_bytes < SIZE + (1 << 16), "nothing came twice"
    one, two, three = heads(wire.requests)
    assert "range:" not in one
    assert "range: bytes=10" in two
    assert "range: bytes=20" in three
    assert "if-match:" in two
    assert "if-match:" in three
    assert "waiting for http://127.0.0.1" in caplog.text
    assert "s3://lab/wire/file" in caplog.text


def test_an_object_that_is_replaced_is_not_spliced(lab: S3Lab) -> None:
    def plan(number: int) -> Fault:
        if number == 1:
            put(lab, OTHER)
        return Fault(cut_after_bytes=1 << 20) if number == 0 else Fault()

    with relay(lab.environment["S3_ENDPOINT_URL"], plan) as wire:
        assert store(wire.url).read() == OTHER
    # The same connection, because the refusal is an answer like any other.
    refused, begun_anew = heads(wire.requests[1].split(b"GET ")[1:])
    assert "if-match:" in refused
    assert "range:" not in begun_anew


def test_silence_in_the_middle_is_noticed(lab: S3Lab, caplog: pytest.LogCaptureFixture) -> None:
    def plan(_: int) -> Fault:  # a busy machine may not answer at all at first
        is_silent = wire.answered_bytes < 1 << 20
        return Fault(stall_after_bytes=1 << 20) if is_silent else Fault()

    with relay(lab.environment["S3_ENDPOINT_URL"], plan) as wire:
        place = store(wire.url, timeout_seconds=2.0)
        place.client()  # how long it takes to make one says nothing of the wire
        assert place.read() == CONTENT
    assert "range: bytes=10" in heads(wire.requests)[-1]
    assert ": no answer within 2 s (attempt 1; " in caplog.text


def test_silence_from_the_start_is_noticed(lab: S3Lab) -> None:
    with relay(lab.environment["S3_ENDPOINT_URL"], first(Fault(stall_after_bytes=0))) as wire:
        assert store(wire.url, timeout_seconds=1.0).read() == CONTENT


def test_slow_is_no_fault(lab: S3Lab, caplog: pytest.LogCaptureFixture) -> None:
    slow = Fault(bytes_per_second=1e6)
    with relay(lab.environment["S3_ENDPOINT_URL"], lambda _: slow) as wire:
        place = store(wire.url, timeout_seconds=0.5, budget_seconds=0.0)
        place.client()  # how long it takes to make one says nothing of the wire
        started = time.monotonic()
        assert place.read() == CONTENT
        assert time.monotonic() - started > 2
    assert len(wire.requests) == 1
    assert not caplog.records


def test_a_store_that_asks_for_patience_gets_it(lab: S3Lab) -> None:
    busy = Fault(answer=SLOW_DOWN)
    with relay(lab.environment["S3_ENDPOINT_URL"], first(busy, busy, busy)) as wire:
        assert store(wire.url).read() == CONTENT
    assert len(wire.requests) == 4


@pytest.mark.timeout(120)
def test_a_store_that_stays_busy_is_given_up(lab: S3Lab) -> None:
    with relay(lab.environment["S3_ENDPOINT_URL"], lambda _: Fault(answer=SLOW_DOWN)) as wire:
        message = rf"read s3://lab/wire/file from {wire.url}: \d+ attempts.*SlowDown.*budget_sec"
        with pytest.raises(StorageError, match=message):
            store(wire.url, budget_seconds=2.0).read()
    assert len(wire.requests) > 2


def test_progress_renews_the_budget(lab: S3Lab) -> None:
    # Six cuts, half a second apart and more: far beyond the budget, but for what came in between.
    cut = Fault(cut_after_bytes=400_000, bytes_per_second=800_000)
    with relay(lab.environment["S3_ENDPOINT_URL"], first(*[cut] * 6)) as wire:
        started = time.monotonic()
        assert store(wire.url, budget_seconds=1.0).read() == CONTENT
        assert time.monotonic() - started > 3


def test_what_was_spent_waiting_counts(lab: S3Lab) -> None:
    with relay(lab.environment["S3_ENDPOINT_URL"], lambda _: Fault(stall_after_bytes=0)) as wire:
        reader = store(wire.url, timeout_seconds=0.5, budget_seconds=60.0)
        with pytest.raises(StorageError, match=r"1 attempt after those of .*for 60 s since"):
            reader.fetch(_InMemory(), stalled_seconds=60.0)


def test_a_fetch_can_be_stopped(lab: S3Lab, caplog: pytest.LogCaptureFixture) -> None:
    stopped = threading.Event()
    with relay(lab.environment["S3_ENDPOINT_URL"], lambda _: Fault(stall_after_bytes=0)) as wire:
        threading.Timer(0.3, stopped.set).start()
        with pytest.raises(StoppedError):
            store(wire.url, timeout_seconds=60.0).fetch(_InMemory(), stopped=stopped)
    assert "no answer within" not in caplog.text, "it was stopped before the attempt had failed"


def test_threads_that_were_left_behind_end(lab: S3Lab) -> None:
    def transfers() -> int:
        return sum(thread.name == "transfer" for thread in threading.enumerate())

    with relay(lab.environment["S3_ENDPOINT_URL"], lambda _: Fault(stall_after_bytes=9)) as wire:
        before = transfers()
        with pytest.raises(StorageError):
            store(wire.url, timeout_seconds=0.5, budget_seconds=1.0).read()
        deadline = time.monotonic() + 60
        while transfers() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert transfers() <= before


def test_threads_share_a_client(lab: S3Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[object, object] = {}
    monkeypatch.setattr(clients, "_clients", made)
    reader = store(lab.environment["S3_ENDPOINT_URL"])
    reader.read()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: reader.read(), range(24))) == {CONTENT}
    assert len(made) == 1


def test_a_forked_process_has_a_client_of_its_own(lab: S3Lab) -> None:
    reader = store(lab.environment["S3_ENDPOINT_URL"])
    assert reader.read() == CONTENT
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if reader.read() == CONTENT else 1)
        finally:
            os._exit(2)
    assert reader.read() == CONTENT
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended == (child, 0)


COMMAND = """
import datetime, json, os, sys, time
calls = open(sys.argv[1], "a")
calls.write("x")
calls.close()
if os.path.getsize(sys.argv[1]) == 2:
    while os.path.exists(sys.argv[1]):
        time.sleep(0.1)
soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)
answer = dict(zip(("AccessKeyId", "SecretAccessKey"), sys.argv[2:]))
print(json.dumps({"Version": 1, "Expiration": soon.isoformat(), **answer}))
"""


def test_credentials_that_hang_do_not_hold_up_the_next_attempt(
    lab: S3Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come from a command, are renewed for each request, and the first renewal hangs."""
    keys = [lab.environment[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")]
    command, calls = tmp_path / "command.py", tmp_path / "calls"
    command.write_text(COMMAND)
    line = " ".join(["credential_process =", sys.executable, str(command), str(calls), *keys])
    (tmp_path / "config").write_text(f"[default]\n{line}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    endpoint = lab.environment["S3_ENDPOINT_URL"]
    try:
        assert store(endpoint, timeout_seconds=3.0, budget_seconds=30.0).read() == CONTENT
        assert calls.stat().st_size > 2
    finally:
        calls.unlink()  # what hangs ends only now


def test_the_endpoint_comes_from_the_configuration_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert clients.endpoint_of(None) is None
    for name in reversed(names):
        monkeypatch.setenv(name, f"http://{name}")
        assert clients.endpoint_of(None) == f"http://{name}"
    assert clients.endpoint_of("http://mine") == "http://mine"


def test_an_endpoint_that_is_no_url() -> None:
    with pytest.raises(StorageError, match=r"S3 endpoint nowhere cannot be used .*endpoint_url"):
        store("nowhere").read()


def test_no_secret_is_told(lab: S3Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with pytest.raises(StorageError) as caught:
        store("http://user:pass-word@127.0.0.1:9", budget_seconds=0.0).read()
    told.append(str(caught.value))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StorageError) as caught:
        store(lab.environment["S3_ENDPOINT_URL"]).read()
    told.append(str(caught.value))
    for secret in ("pass-word", "not-the-secret", lab.environment["AWS_SECRET_ACCESS_KEY"]):
        assert not any(secret in text for text in told), told


def test_notices_are_few(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_last_seconds", [])
    clock = iter(range(25))
    monkeypatch.setattr(notices, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level(logging.WARNING):
        for _ in range(25):
            notices.notice("still waiting")
    assert [record.message for record in caplog.records] == ["still waiting"] * 3


def test_parts_of_a_file_that_is_replaced_are_refused(lab: S3Lab) -> None:
    opened = store(lab.environment["S3_ENDPOINT_URL"]).open()
    target = bytearray(1000)
    opened.read_into(memoryview(target), offset=5000)
    assert target == CONTENT[5000:6000]
    put(lab, OTHER[: len(CONTENT)])
    opened.close()
    with pytest.raises(StorageError, match="wire/file was replaced while it was read"):
        opened.read_into(memoryview(target), offset=0)
    with pytest.raises(StorageError, match="ends too early"):
        opened.read_into(memoryview(target), offset=SIZE - 999)


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?", "a#b?c=d", "z ü%20+&", "{x}"])
def test_names_are_literal(lab: S3Lab, name: str) -> None:
    storage = StorageConfig(endpoint_url=lab.environment["S3_ENDPOINT_URL"])
    place = Place.parse(f"s3://lab/literal/{name}", storage)
    other = Place.parse("s3://lab/literal/run1", storage)
    (other / "step/file").write(b"other")
    (place / "step/file").write(b"mine")
    assert str(place / "step") == f"s3://lab/literal/{name}/step"
    assert place.names() == ["step"]
    assert [found.name for found in place.files()] == ["step/file"]
    assert (place / "step/file").read() == b"mine"
    place.remove()
    assert not place.exists()
    assert (other / "step/file").read() == b"other"


class Refusing:
    """A client whose store refuses to remove one object, as often as it has faults."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)

    def list_objects_v2(self, **_: Any) -> dict[str, Any]:
        return {}

    def delete_objects(self, **_: Any) -> dict[str, Any]:
        return {
            "Errors": [{"Code": code, "Key": "x"} for code in self.codes[:1] if self.codes.pop(0)]
        }


def test_an_object_that_is_not_removed_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = StorageConfig(retry_budget_seconds=20)
    client = Refusing("InternalError", "SlowDown")
    monkeypatch.setattr(StorePlace, "client", lambda _: client)
    Place.parse("s3://bucket/x", storage).remove()
    assert client.codes == []
    client.codes = ["AccessDenied"] * 9
    with pytest.raises(StorageError, match="DeleteObject"):
        Place.parse("s3://bucket/x", storage).remove()
    assert len(client.codes) == 8, "asked again"


def test_no_more_is_read_of_an_object_than_there_can_be(lab: S3Lab) -> None:
    place = store(lab.environment["S3_ENDPOINT_URL"])
    assert place.read(limit_bytes=SIZE) == CONTENT
    with pytest.raises(StorageError, match=f"is larger than {SIZE - 1:,} bytes, which no such"):
        place.read(limit_bytes=SIZE - 1)


def test_an_answer_that_is_cut_in_its_head_is_no_answer(
    lab: S3Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is cut: nothing is taken for missing, empty or short."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE_SECONDS", 0.001)
    put(lab, b"some text")
    cut: list[int] = []

    def plan(_: int) -> Fault:
        return Fault(cut_after_bytes=cut.pop()) if cut else Fault()

    with relay(lab.environment["S3_ENDPOINT_URL"], plan) as wire:
        file, directory = store(wire.url), store(wire.url).parent
        expected = file.find()
        for num_bytes in range(1, 220):
            file.client()._endpoint.http_session.close()  # another connection
            cut[:] = [num_bytes]
            assert file.find() == expected, num_bytes
        for num_bytes in (9, 30, 57, 77, 110, 150, 190, 230, 270):  # all within the head
            for ask, expected in (
                (file.read, b"some text"),
                (lambda: file.find().num_bytes, 9),  # pyright: ignore[reportOptionalMemberAccess]
                (directory.names, ["file"]),
                (lambda: file.write(b"some text"), None),
            ):
                file.client()._endpoint.http_session.close()  # another connection
                cut[:] = [num_bytes]
                assert ask() == expected, num_bytes
