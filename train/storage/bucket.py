"""Files in S3, read and written with patience."""

import contextlib
import io
import re
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self, TypeVar

from botocore.exceptions import ClientError
from typing_extensions import override

from train.errors import StorageError
from train.storage import client as clients
from train.storage.diagnosis import (
    BEYOND_END,
    REPLACED,
    TRANSFER_ERRORS,
    UNKNOWN_TO_STORE,
    MissingError,
    cause_of,
    error_code,
    is_timeout,
    lasting_fault,
)
from train.storage.patience import Patience, Tell
from train.storage.place import Found, Place, ReplacedError, Sink, Source, too_large

Result = TypeVar("Result")

NEAR_BYTES: Final = 1 << 23
"""Smaller reads that lie close together come with one request of this."""
_CHUNK_BYTES: Final = 1 << 18
_GONE: Final = {"NoSuchKey", "404"}
"""What stores say of a condition where there is no file at all."""
_DELETED_AT_ONCE: Final = 1000
_ASK_SECONDS: Final = 10.0


class Landing(Protocol):
    """Where the bytes of a file go. What it raises ends the transfer."""

    @property
    def num_bytes(self) -> int:
        """How many there are."""
        ...

    def write(self, data: bytes, /) -> object:
        """Append."""
        ...

    def restart(self) -> None:
        """Forget all."""
        ...


@dataclass(frozen=True)
class StorePlace(Place):
    """A name in S3; credentials come from the usual AWS variables, profile or services.

    Attributes:
        bucket: in which it lies.
    """

    is_remote = True

    bucket: str = ""

    @override
    def names(self) -> list[str]:
        found: set[str] = set()
        for page in self._pages(Delimiter="/"):
            found |= {entry["Prefix"] for entry in page.get("CommonPrefixes", [])}
            found |= {entry["Key"] for entry in page.get("Contents", [])}
        # A store may list the directory itself.
        below = {name.removeprefix(self._prefix).rstrip("/") for name in found}
        return sorted(below - {""})

    @override
    def files(self) -> Iterator[Found]:
        for page in self._pages():
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    yield Found(
                        name=entry["Key"].removeprefix(self._prefix),
                        num_bytes=entry["Size"],
                        version=entry["ETag"],
                    )

    @override
    def find(self) -> Found | None:
        if not self.path:
            return None

        def found(client: Any, key: dict[str, str]) -> Found:
            head = client.head_object(**key)
            return Found(name="", num_bytes=int(head["ContentLength"]), version=head["ETag"])

        try:
            return self.ask("read", found)
        except MissingError:
            return None

    @override
    def exists(self) -> bool:
        return self.find() is not None or next(self.files(), None) is not None

    @override
    def read(self, *, limit_bytes: int | None = None) -> bytes:
        landing = _InMemory(self, limit_bytes)
        self.fetch(landing)
        return landing.getvalue()

    @override
    def open(self) -> Source:
        found = self.find()
        if found is None:
            raise MissingError(f"{self} does not exist")
        return _OpenObject(self, found)

    @override
    @contextlib.contextmanager
    def create(self) -> Generator[Sink]:
        from train.storage.upload import Upload

        upload = Upload(self)
        try:
            yield upload
            upload.complete()
        except BaseException:
            upload.abandon()
            raise

    @override
    def write(self, data: bytes) -> None:
        from train.storage.upload import send

        send(self, "put_object", data)

    @override
    def write_over(self, data: bytes, *, before: Found | None) -> None:
        from train.storage.upload import send

        condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": before.version}
        try:
            send(self, "put_object", data, **condition)
        except StorageError as error:
            code = error_code(error.__cause__) if error.__cause__ else None
            if code == UNKNOWN_TO_STORE:
                self.write(data)
            elif code not in REPLACED | _GONE:
                raise
            elif self.find() is None and before is not None:
                self.write_over(data, before=None)
            elif self.read() != data:  # else an answer was lost
                raise ReplacedError(f"{self} was written by another process meanwhile") from None

    @override
    def write_new(self, data: bytes) -> None:
        from train.storage.upload import send

        try:
            send(self, "put_object", data, IfNoneMatch="*")
        except StorageError as error:
            code = error_code(error.__cause__) if error.__cause__ else None
            if code == UNKNOWN_TO_STORE:  # then the last of several writes it
                self.write(data)
            elif code not in REPLACED:
                raise

    @override
    def _write_whole_new(self, data: bytes) -> None:
        self.write_new(data)

    @override
    def remove(self) -> None:
        keys = [self.path, *((self / found.name).path for found in self.files())]
        for begin in range(0, len(keys), _DELETED_AT_ONCE):
            some = [{"Key": key} for key in keys[begin : begin + _DELETED_AT_ONCE]]

            def delete(client: Any, _: dict[str, str], some: list[dict[str, str]] = some) -> None:
                answer = client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": some, "Quiet": True}
                )
                for fault in answer.get("Errors", []):
                    # Raised inside, so that it is tried again where that may help.
                    raise ClientError({"Error": fault}, "DeleteObjects")

            self.ask("write", delete)

    def fetch(
        self,
        landing: Landing,
        *,
        begin: int = 0,
        end: int | None = None,
        version: str | None = None,
        stalled_seconds: float = 0.0,
        stopped: threading.Event | None = None,
    ) -> None:
        """Download a file, or a part of it; a failed attempt is continued where it stopped.

        Args:
            landing: takes the bytes; empty.
            begin: first byte.
            end: one past the last byte; None is the end of the file.
            version: refuse any other; None takes the newest, and begins anew if it is replaced.
            stalled_seconds: how much of the budget was spent before.
            stopped: when set, the file is no longer wanted.

        Raises:
            MissingError: there is no such file.
            StorageError: it could not be fetched within the budget.
            StoppedError: it is no longer wanted.
        """
        seen = version

        def attempt(patience: Patience) -> None:
            nonlocal seen
            request: dict[str, Any] = {"Bucket": self.bucket, "Key": self.path}
            first = begin + landing.num_bytes
            if first or end is not None:
                request["Range"] = f"bytes={first}-{'' if end is None else end - 1}"
            if seen is not None and (first > begin or version is not None):
                request["IfMatch"] = seen

            def speak(tell: Tell) -> None:
                answer = self.client().get_object(**request)
                with answer.pop("Body") as connection:
                    tell(answer)
                    # As much as is there: waiting for a full chunk would look like no progress.
                    while chunk := connection.read1(_CHUNK_BYTES):
                        tell(chunk)

            try:
                told = patience.listen(speak)
                head = next(told)
                seen = version or head["ETag"]
                if _first_byte(head) != first:
                    # The store does not continue: it sends the whole.
                    if begin:
                        raise ConnectionError("the store does not send parts of files")
                    landing.restart()
                expected = landing.num_bytes + int(head["ContentLength"])
                for chunk in told:
                    landing.write(chunk)
                    patience.moved_bytes += len(chunk)
                if landing.num_bytes != expected:
                    raise ConnectionError(
                        f"the connection ended after {landing.num_bytes:,} of {expected:,} bytes"
                    )
            except TRANSFER_ERRORS as error:
                if error_code(error) not in REPLACED | BEYOND_END:
                    raise
                if version is not None:
                    raise StorageError(
                        f"{self} was replaced while it was read; read it again"
                    ) from error
                # What is there of the old one is of no use.
                landing.restart()
                seen = None
                raise ConnectionError("another file has taken its place") from error

        stopped = stopped or threading.Event()
        self.patience("read", stalled_seconds=stalled_seconds, stopped=stopped).run(attempt)

    def ask(self, verb: str, request: Callable[[Any, dict[str, str]], Result]) -> Result:
        """What a store answers to a small request.

        Args:
            verb: read or write.
            request: makes it, given a client, and the bucket and the key as its arguments.

        Raises:
            StorageError: there is no answer within the budget, or it is no.
        """
        key = {"Bucket": self.bucket, "Key": self.path}
        return self.patience(verb).run(
            lambda patience: patience.ask(lambda: request(self.client(), key))
        )

    @property
    @override
    def in_haste(self) -> Self:
        seconds = min(self.storage.timeout_seconds, _ASK_SECONDS)
        update = {"timeout_seconds": seconds, "retry_budget_seconds": 0.0}
        return replace(self, storage=self.storage.model_copy(update=update))

    def client(self) -> Any:
        """The process's client for the store."""
        return clients.client(self._endpoint, timeout_seconds=self.storage.timeout_seconds)

    def patience(self, verb: str, **more: Any) -> Patience:
        """Patience with one request to read or to write, told `more` than it needs to know."""
        return Patience(
            doing=f"{verb} {self._url} {'to' if verb == 'write' else 'from'} {self._store}",
            store=self._store,
            storage=self.storage,
            judge=lambda error: self._judge(error, verb),
            **more,
        )

    @property
    def _prefix(self) -> str:
        return f"{self.path}/" if self.path else ""

    @property
    def _endpoint(self) -> str | None:
        return clients.endpoint_of(self.storage.endpoint_url)

    @property
    def _store(self) -> str:
        return clients.without_secrets(self._endpoint or "Amazon S3")

    def _pages(self, **options: str) -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {}
        while True:
            page = self.ask(
                "read",
                lambda client, _, more=more: client.list_objects_v2(
                    Bucket=self.bucket, Prefix=self._prefix, **options, **more
                ),
            )
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _judge(self, error: Exception, verb: str) -> str:
        if not isinstance(error, TRANSFER_ERRORS) or isinstance(error, StorageError):
            raise error
        if is_timeout(error):
            # Its thread may hang in the client for ever, and hold locks of it.
            clients.discard(self._endpoint, timeout_seconds=self.storage.timeout_seconds)
        lasting = lasting_fault(
            error, url=self._url, verb=verb, store=self._store, ask_bucket=self._ask_bucket
        )
        if lasting is not None:
            raise lasting from error
        if is_timeout(error):
            told = str(error) if type(error) is TimeoutError else ""
            return told or f"no answer within {self.storage.timeout_seconds:g} s"
        return cause_of(error)

    def _ask_bucket(self) -> str | None:
        """The error code for listing the bucket; None if the listing works or tells nothing."""
        try:
            self.in_haste.patience("read").ask(
                lambda: self.client().list_objects_v2(Bucket=self.bucket, MaxKeys=1)
            )
        except TRANSFER_ERRORS as error:
            return error_code(error)
        return None

    @property
    def _url(self) -> str:
        return f"s3://{self.bucket}/{self.path}"


class _InMemory(io.BytesIO):
    """A landing for small files."""

    def __init__(self, place: Place | None = None, limit_bytes: int | None = None) -> None:
        super().__init__()
        self._place, self._limit_bytes = place, limit_bytes

    def write(self, data: Any, /) -> int:
        if self._limit_bytes is not None and self.tell() + len(data) > self._limit_bytes:
            raise too_large(self._place, self._limit_bytes)
        return super().write(data)

    @property
    def num_bytes(self) -> int:
        return self.tell()

    def restart(self) -> None:
        self.seek(0)
        self.truncate()


class _Into:
    """A landing in memory of somebody else."""

    def __init__(self, target: memoryview) -> None:
        self._target = target
        self.num_bytes = 0

    def write(self, data: bytes, /) -> None:
        self._target[self.num_bytes : self.num_bytes + len(data)] = data
        self.num_bytes += len(data)

    def restart(self) -> None:
        self.num_bytes = 0


class _OpenObject:
    """A file of which parts are asked for; small ones that lie close together come at once."""

    def __init__(self, place: StorePlace, found: Found) -> None:
        self._place = place
        self._version = found.version
        self.num_bytes = found.num_bytes
        self._held = memoryview(b"")
        self._held_from = 0

    def read_into(self, target: memoryview, *, offset: int) -> None:
        end = offset + len(target)
        if end > self.num_bytes:
            raise StorageError(f"{self._place} ends too early")
        if len(target) >= NEAR_BYTES:
            self._fetch(target, offset)
            return
        if not self._held_from <= offset <= end <= self._held_from + len(self._held):
            held = memoryview(bytearray(min(NEAR_BYTES, self.num_bytes - offset)))
            self._fetch(held, offset)
            self._held, self._held_from = held, offset
        target[:] = self._held[offset - self._held_from : end - self._held_from]

    def close(self) -> None:
        self._held = memoryview(b"")

    def _fetch(self, target: memoryview, offset: int) -> None:
        if len(target):
            self._place.fetch(
                _Into(target), begin=offset, end=offset + len(target), version=self._version
            )


def _first_byte(head: dict[str, Any]) -> int:
    """The offset of the first byte that an answer brings."""
    found = re.match(r"bytes (\d+)-", str(head.get("ContentRange") or "bytes 0-"))
    return int(found[1]) if found else 0
