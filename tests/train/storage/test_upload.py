"""Writing over a wire that is cut, stalled and slow, to a real S3 server."""

import os
import time
from contextlib import nullcontext
from hashlib import md5
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.lab_fixtures import S3Lab
from tests.train.storage.relay import NOT_IMPLEMENTED, SLOW_DOWN, Fault, relay
from tests.train.storage.wire import CONTENT, OTHER, SIZE, first, lab, store
from tools.lab import s3
from train.errors import StorageError
from train.storage.bucket import StorePlace
from train.storage.upload import Upload

__all__ = ["lab"]  # a fixture


def test_a_write_goes_on_after_what_can_happen_to_it(lab: S3Lab) -> None:
    """Silence, a busy store and a broken connection."""
    faults = [Fault(stall_after_bytes=0), Fault(answer=SLOW_DOWN), Fault(cut_after_bytes=9)]
    with relay(lab.environment["S3_ENDPOINT_URL"], first(*faults)) as wire:
        writer = store(wire.url, "written", timeout_seconds=1.0)
        writer.write(OTHER)
        assert len(wire.requests) == 4
        assert writer.read() == OTHER


@pytest.mark.parametrize("content", [b"step_00000010", CONTENT], ids=["small", "large"])
def test_a_body_that_never_comes_makes_no_empty_file(lab: S3Lab, content: bytes) -> None:
    """SeaweedFS says 200 to one, and may do so when the next attempt is through."""
    lost = Fault(is_head_alone=True)
    with relay(lab.environment["S3_ENDPOINT_URL"], first(lost, lost)) as wire:
        place = store(wire.url, f"lost-{len(content)}")
        place.write(content)
        assert len(wire.requests) > 2, "tried again"
        assert place.read() == content
        writer = Upload(store(wire.url, f"lost-{len(content)}-in-parts"))
        writer.write(content)
        writer.complete()
        assert place.read() == content


@pytest.mark.parametrize(
    "fault",
    [Fault(answer=NOT_IMPLEMENTED), Fault(cut_after_bytes=40)],
    ids=["a store that does not know the condition", "a lost answer"],
)
def test_a_file_is_written_unless_there_is_one(lab: S3Lab, fault: Fault) -> None:
    with relay(lab.environment["S3_ENDPOINT_URL"], first(fault)) as wire:
        place = store(wire.url, f"new-{hash(fault)}", budget_seconds=10.0)
        place.write_new(OTHER)
        assert place.read() == OTHER
        place.write_new(b"another")
        assert place.read() == OTHER


def test_a_slow_write_is_no_fault(lab: S3Lab, caplog: pytest.LogCaptureFixture) -> None:
    slow = Fault(taken_per_second=8e6)
    content = bytes(24 << 20)
    with relay(lab.environment["S3_ENDPOINT_URL"], lambda _: slow) as wire:
        place = store(wire.url, "written", timeout_seconds=2.0, budget_seconds=0.0)
        place.client()  # how long it takes to make one says nothing of the wire
        started = time.monotonic()
        place.write(content)
        assert time.monotonic() - started > 2.5
    assert len(wire.requests) == 1
    assert not caplog.records


def test_a_write_that_never_ends_is_given_up(lab: S3Lab) -> None:
    with relay(lab.environment["S3_ENDPOINT_URL"], lambda _: Fault(stall_after_bytes=0)) as wire:
        message = rf"not write s3://lab/wire/written to {wire.url}: \d+ attempts.*no answer within"
        with pytest.raises(StorageError, match=message):
            store(wire.url, "written", timeout_seconds=0.5, budget_seconds=1.0).write(b"x")


def test_parts_are_sent_again_one_by_one(
    lab: S3Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("train.storage.upload.PART_BYTES", 5 << 20)
    content = os.urandom(12 << 20)

    cut = Fault(cut_after_bytes=700)
    with relay(lab.environment["S3_ENDPOINT_URL"], first(*[cut] * 4)) as wire:
        writer = store(wire.url, "parts")
        with writer.create() as sink:
            for begin in range(0, len(content), 1 << 20):
                sink.write(memoryview(content)[begin : begin + (1 << 20)])
            assert writer.find() is None
        assert len(wire.requests) >= 3
        assert "trying again" in caplog.text
        assert writer.read() == content
        assert wire.taken_bytes < 2.5 * len(content)


def test_a_file_of_the_same_size_is_not_taken_for_what_was_sent(
    lab: S3Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the end of an upload may get lost: what stands there tells if it was heard."""
    monkeypatch.setattr("train.storage.upload.PART_BYTES", SIZE)
    place = store(lab.environment["S3_ENDPOINT_URL"], "lost", budget_seconds=0.0)
    upload = Upload(place)
    upload.write(CONTENT)
    for _ in range(2):
        upload.complete()
    client = s3.client(lab.environment)
    client.put_object(Bucket=lab.bucket, Key="wire/lost", Body=CONTENT[::-1])
    with pytest.raises(StorageError, match="NoSuchUpload"):
        upload.complete()


class Forgetting:
    """A client whose store joins the parts of an upload, but whose answer is lost."""

    def __init__(self, part: str, whole: str) -> None:
        self.part, self.head = part, {"ContentLength": 25, "ETag": f'"{whole}"'}
        self.begun = [{"UploadId": "id"}]

    def create_multipart_upload(self, **_: Any) -> dict[str, Any]:
        return self.begun[0] if len(self.begun) == 1 else self.begun.pop(0)

    def upload_part(self, Body: Any, **_: Any) -> dict[str, Any]:
        Body.read()
        return {"ETag": f'"{self.part}"'}

    def complete_multipart_upload(self, **_: Any) -> None:
        raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")

    def head_object(self, **_: Any) -> dict[str, Any]:
        return self.head


@pytest.mark.parametrize(
    ("part", "whole", "is_same"),
    [
        ("ab" * 16, md5(bytes.fromhex("ab" * 48)).hexdigest() + "-3", True),
        ("ab" * 16, md5(b"other").hexdigest() + "-3", False),
        ("ab" * 16, "CPi8abcd==", True),
        ("x7Q-opaque", "y7Q-opaque", True),
        ("x7Q-opaque", "ab" * 16 + "-3", True),
    ],
)
def test_a_lost_answer_on_stores_with_etags_of_their_own(
    monkeypatch: pytest.MonkeyPatch, part: str, whole: str, is_same: bool
) -> None:
    """Only where all are MD5 do those of the parts tell that of the file; else its size does."""
    client = Forgetting(part, whole)
    monkeypatch.setattr(StorePlace, "client", lambda _: client)
    monkeypatch.setattr("train.storage.upload.PART_BYTES", 10)
    for num_bytes, is_whole in ((25, is_same), (24, False)):
        upload = Upload(store("http://127.0.0.1:9", budget_seconds=0.0))
        upload.write(bytes(num_bytes))
        with nullcontext() if is_whole else pytest.raises(StorageError, match="NoSuchUpload"):
            upload.complete()


def test_an_answer_that_names_no_upload_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Forgetting("opaque", "opaque")
    client.begun = [{}, *client.begun]
    monkeypatch.setattr(StorePlace, "client", lambda _: client)
    monkeypatch.setattr("train.storage.upload.PART_BYTES", 25)
    upload = Upload(store("http://127.0.0.1:9"))
    upload.write(bytes(25))
    upload.complete()


def test_what_is_not_whole_never_appears(lab: S3Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.storage.upload.PART_BYTES", 5 << 20)
    writer = store(lab.environment["S3_ENDPOINT_URL"], "half")

    def fail() -> None:
        with writer.create() as sink:
            sink.write(bytes(6 << 20))
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fail()
    assert writer.find() is None
    listing = s3.client(lab.environment).list_multipart_uploads(Bucket=lab.bucket)
    # Other keys may have some: an upload whose begin was answered to nobody stays.
    assert writer.path not in {upload["Key"] for upload in listing.get("Uploads", [])}
