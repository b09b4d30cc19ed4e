"""Fetches single files from object storage, for as long as they make progress."""

import queue
import random
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from train.errors import DataError
from train.storage import s3_client
from train.storage.notices import INTERVAL_SECONDS, notice
from train.storage.s3_faults import (
    BEYOND_END,
    REPLACED,
    TRANSFER_ERRORS,
    MissingObjectError,
    cause_of,
    error_code,
    is_timeout,
    lasting_fault,
)

__all__ = ["MissingObjectError", "ObjectStore", "error_code", "within_deadline"]

Result = TypeVar("Result")

_CHUNK_BYTES: Final = 1 << 18
_CHUNKS_AHEAD: Final = 8
_TICK_SECONDS: Final = 0.25
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 20.0
_ASK_SECONDS: Final = 10.0


class Landing(Protocol):
    """Where the bytes of a file go. What it raises is a DataError, and ends the transfer."""

    @property
    def num_bytes(self) -> int:
        """How many there are."""
        ...

    def write(self, data: bytes, /) -> None:
        """Append."""
        ...

    def restart(self) -> None:
        """Forget all."""
        ...


class StoppedError(Exception):
    """Whoever asked for the file no longer wants it."""


class ObjectStore:
    """A directory in S3, read file by file.

    Credentials come from the usual AWS variables, profile or services. An attempt fails when no
    bytes arrive for `timeout_seconds`, whatever blocks (name resolution, credentials, connecting,
    the server), so a store that is slow is no error. A failed attempt is repeated, continuing where
    it stopped, with pauses that grow, until nothing has arrived for `retry_budget_seconds`.
    """

    def __init__(
        self,
        root: str,
        *,
        timeout_seconds: float,
        retry_budget_seconds: float,
        endpoint_url: str | None = None,
    ) -> None:
        """Describe the directory; nothing is fetched yet.

        Args:
            root: URL of the directory.
            timeout_seconds: longest wait for the next bytes.
            retry_budget_seconds: how long to go on after the first failure without progress.
            endpoint_url: of the store; by default from `S3_ENDPOINT_URL`, `AWS_ENDPOINT_URL_S3` or
                `AWS_ENDPOINT_URL`, else Amazon's.

        Raises:
            DataError: the URL is not one of S3.
        """
        self.root = root.rstrip("/")
        parts = urllib.parse.urlsplit(self.root)
        if parts.scheme != "s3" or not parts.netloc:
            raise DataError(
                f"{root} is not a place that data can be read from; give a directory or an "
                "s3://bucket/path URL."
            )
        self._bucket = parts.netloc
        self._prefix = parts.path.lstrip("/")
        self._endpoint = s3_client.endpoint_of(endpoint_url)
        self.endpoint = s3_client.without_secrets(self._endpoint or "Amazon S3")
        """What to call the store in messages."""
        self._timeout_seconds = timeout_seconds
        self._budget_seconds = retry_budget_seconds

    def read(self, name: str) -> bytes:
        """The content of a file of the directory.

        Raises:
            MissingObjectError: there is no such file.
            DataError: it could not be fetched within the budget.
        """
        landing = _InMemory()
        self.fetch(name, landing)
        return landing.content()

    def fetch(
        self,
        name: str,
        landing: Landing,
        *,
        stalled_seconds: float = 0.0,
        stopped: threading.Event | None = None,
    ) -> None:
        """Download one file of the directory.

        Args:
            name: path of the file below the root.
            landing: takes the bytes; empty.
            stalled_seconds: how much of the budget was spent before, waiting for another process
                that tried the same.
            stopped: when set, the file is no longer wanted.

        Raises:
            MissingObjectError: there is no such file.
            DataError: it could not be fetched within the budget.
            StoppedError: it is no longer wanted.
        """
        stopped = stopped or threading.Event()
        url = f"{self.root}/{name}"
        key = f"{self._prefix}/{name}".lstrip("/")
        etag: str | None = None
        failing_since: float | None = None
        attempts, fruitless = 0, 0
        while True:
            attempts += 1
            before = landing.num_bytes
            transfer = _Transfer(
                self._client,
                {"Bucket": self._bucket, "Key": key},
                timeout_seconds=self._attempt_seconds(failing_since),
                stopped=stopped,
                describe=f"{url} from {self.endpoint}",
            )
            try:
                transfer.run(landing, etag=etag)
                return
            except TRANSFER_ERRORS as error:
                reason = error
                text = transfer.timeout_text() if is_timeout(error) else cause_of(error)
            finally:
                etag = transfer.etag
                transfer.abandon()
            if is_timeout(reason):
                # Its thread may hang in the client for ever, and hold locks of it.
                s3_client.discard(self._endpoint, timeout_seconds=self._timeout_seconds)
            code = error_code(reason)
            if code in REPLACED | BEYOND_END:
                # Another object has taken its place: what is there of the old one is of no use.
                landing.restart()
                etag = None
            else:
                lasting = lasting_fault(
                    reason, url=url, endpoint=self.endpoint, ask_bucket=self._ask_bucket
                )
                if lasting is not None:
                    raise lasting from reason
            now = time.monotonic()
            if landing.num_bytes > before:
                failing_since, fruitless = now, 0
            elif failing_since is None:
                failing_since = now - stalled_seconds
            fruitless += 1
            lost_seconds = now - failing_since
            if lost_seconds >= self._budget_seconds:
                tried = _times(attempts)
                if stalled_seconds >= 1:
                    tried += " after those of another process"
                raise DataError(
                    f"Could not read {url} from {self.endpoint}: {tried}, and nothing "
                    f"for {lost_seconds:.0f} s since the first failure; the last: {text}. Check "
                    f"that {self.endpoint} can be reached and is the store that is meant "
                    "(storage.endpoint_url, S3_ENDPOINT_URL), or raise "
                    f"storage.retry_budget_seconds ({self._budget_seconds:g})."
                ) from reason
            # Jitter over the whole pause, so that a thousand ranks do not come back at once.
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(fruitless, 10))
            pause = min(_random.uniform(0, pause), self._budget_seconds - lost_seconds)
            notice(
                f"waiting for {self.endpoint}: {url}: {text} (attempt {attempts}; giving up "
                f"{self._budget_seconds - lost_seconds:.0f} s from now); trying again"
            )
            if stopped.wait(pause):
                raise StoppedError

    def _attempt_seconds(self, failing_since: float | None) -> float:
        if failing_since is None:
            return self._timeout_seconds
        left = self._budget_seconds - (time.monotonic() - failing_since)
        # The last attempt gets what is left, but enough for a store that is back.
        return min(self._timeout_seconds, max(left, 1.0))

    def _client(self) -> Any:
        return s3_client.client(self._endpoint, timeout_seconds=self._timeout_seconds)

    def _ask_bucket(self) -> str | None:
        """The error code for listing the bucket; None if the listing works or tells nothing."""
        try:
            within_deadline(
                lambda: self._client().list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1
                ),
                min(self._timeout_seconds, _ASK_SECONDS),
            )
        except TRANSFER_ERRORS as error:
            return error_code(error)
        return None


class _Transfer:
    """One attempt to download: a thread of its own speaks to the store, and may block for ever.

    The thread touches nothing but its queue and its connection, so it can be left behind.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        address: dict[str, str],
        *,
        timeout_seconds: float,
        stopped: threading.Event,
        describe: str,
    ) -> None:
        self._client = client
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._stopped = stopped
        self._describe = describe
        self._abandoned = False
        # Either the answer's head, then chunks, then None; or an error instead of any of them.
        self._arrived: queue.Queue[Any] = queue.Queue(_CHUNKS_AHEAD)
        self.etag: str | None = None
        """Of the object, once the store has answered."""

    def run(self, landing: Landing, *, etag: str | None) -> None:
        """Append what the landing lacks.

        Raises:
            TRANSFER_ERRORS: it did not come to its end.
            StoppedError: it is no longer wanted.
        """
        self.etag = etag
        request = dict(self._address)
        if landing.num_bytes:
            request["Range"] = f"bytes={landing.num_bytes}-"
            if etag is not None:
                request["IfMatch"] = etag
        threading.Thread(target=self._speak, args=(request,), name="transfer", daemon=True).start()
        head = self._next()
        self.etag = head.get("ETag")
        if landing.num_bytes and _begin(head) != landing.num_bytes:
            # The store does not continue: it sends the whole.
            landing.restart()
        expected = landing.num_bytes + int(head["ContentLength"])
        while (chunk := self._next()) is not None:
            landing.write(chunk)
        if landing.num_bytes != expected:
            raise ConnectionError(
                f"the connection ended after {landing.num_bytes:,} of {expected:,} bytes"
            )

    def abandon(self) -> None:
        """Let the thread end; it is not waited for."""
        self._abandoned = True
        while True:
            try:
                self._arrived.get_nowait()
            except queue.Empty:
                return

    def timeout_text(self) -> str:
        """What to say where nothing came in time."""
        return f"no answer within {self._timeout_seconds:g} s"

    def _next(self) -> Any:
        waiting_since = time.monotonic()
        while True:
            if self._stopped.is_set():
                raise StoppedError
            waited = time.monotonic() - waiting_since
            if waited >= self._timeout_seconds:
                raise TimeoutError(self.timeout_text())
            try:
                item = self._arrived.get(timeout=min(_TICK_SECONDS, self._timeout_seconds - waited))
            except queue.Empty:
                if waited >= INTERVAL_SECONDS:
                    notice(f"waiting: no bytes of {self._describe} for {waited:.0f} s")
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def _speak(self, request: dict[str, str]) -> None:
        try:
            answer = self._client().get_object(**request)
            body = answer.pop("Body")
            with body as connection:
                self._arrived.put(answer)
                # As much as is there: waiting for a full chunk would look like no progress.
                while chunk := connection.read1(_CHUNK_BYTES):
                    if self._abandoned:
                        return
                    self._arrived.put(chunk)
            self._arrived.put(None)
        except BaseException as error:
            if not self._abandoned:
                self._arrived.put(error)


class _InMemory:
    """A landing for small files."""

    def __init__(self) -> None:
        self._content = bytearray()

    @property
    def num_bytes(self) -> int:
        return len(self._content)

    def write(self, data: bytes, /) -> None:
        self._content += data

    def restart(self) -> None:
        self._content.clear()

    def content(self) -> bytes:
        return bytes(self._content)


# Not the one that is seeded for training.
_random: Final = random.SystemRandom()


def _begin(head: dict[str, Any]) -> int:
    """The offset of the first byte that an answer brings."""
    text = str(head.get("ContentRange") or "bytes 0-")
    return int(text.removeprefix("bytes ").partition("-")[0])


def _times(attempts: int) -> str:
    return f"{attempts} attempt{'s' if attempts > 1 else ''}"


def within_deadline(action: Callable[[], Result], timeout_seconds: float) -> Result:
    """Run an action that may block for ever, in a thread that can be left behind.

    Raises:
        TimeoutError: it did not end in time; its thread goes on, and dies with the process.
        Exception: whatever the action raised, in the calling thread.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="object-store", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"no answer within {timeout_seconds:g} s")
    return results[0]
