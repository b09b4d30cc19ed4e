"""Patience with a store: a deadline for progress, a budget for trying again, and notices.

An attempt fails when nothing moves for the timeout, however long it takes in all: slow is not
broken. A failed one is repeated, with pauses that grow, until nothing has moved for the budget.
"""

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from train.errors import StorageError
from train.storage.config import StorageConfig
from train.storage.notices import INTERVAL_SECONDS, notice

Result = TypeVar("Result")
Tell = Callable[[Any], None]

_AHEAD: Final = 8
_TICK_SECONDS: Final = 0.25
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 20.0
# Not the one that is seeded for training.
_random: Final = random.SystemRandom()


class StoppedError(Exception):
    """Whoever asked for a file no longer wants it."""


@dataclass(kw_only=True)
class Patience:
    """Tries one request until it is done, or nothing has moved for too long.

    Attributes:
        doing: the request as a sentence goes on after "could not".
        store: what to call the store.
        storage: the deadline and the budget.
        judge: tells the cause of a failed attempt in a few words, or raises the error to be raised
            at once, where trying again cannot help.
        stalled_seconds: how much of the budget was spent before, waiting for another process that
            tried the same.
        stopped: when set, the request is no longer wanted.
        moved_bytes: what attempts have gained so far, and need not do again.
    """

    doing: str
    store: str
    storage: StorageConfig
    judge: Callable[[Exception], str]
    stalled_seconds: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)
    moved_bytes: int = 0

    def __post_init__(self) -> None:
        """Give the first attempt the whole timeout."""
        self._deadline_seconds = self.storage.timeout_seconds

    def run(self, attempt: Callable[["Patience"], Result]) -> Result:
        """The result of the first attempt that succeeds.

        Args:
            attempt: tries once; what it does with the store goes through `listen`.

        Raises:
            StorageError: none did within the budget, or none ever will.
            StoppedError: the request is no longer wanted.
        """
        failing_since: float | None = None
        attempts, fruitless = 0, 0
        while True:
            attempts += 1
            before = self.moved_bytes
            self._deadline_seconds = self.storage.timeout_seconds
            if failing_since is not None:
                left = self.storage.retry_budget_seconds - (time.monotonic() - failing_since)
                # The last attempt gets what is left, but enough for a store that is back.
                self._deadline_seconds = min(self._deadline_seconds, max(left, 1.0))
            try:
                return attempt(self)
            except StoppedError:
                raise
            except Exception as error:
                reason = error
                text = self.judge(error)
            now = time.monotonic()
            if self.moved_bytes > before:
                failing_since, fruitless = now, 0
            elif failing_since is None:
                failing_since = now - self.stalled_seconds
            fruitless += 1
            left_seconds = self.storage.retry_budget_seconds - (now - failing_since)
            if left_seconds <= 0:
                raise StorageError(
                    self._given_up(attempts, text, lost_seconds=now - failing_since)
                ) from reason
            # Jitter over the whole pause, so that a thousand ranks do not come back at once.
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(fruitless, 10))
            notice(
                f"waiting for {self.store}: could not {self.doing}: {text} (attempt "
                f"{attempts}; giving up {left_seconds:.0f} s from now); trying again"
            )
            if self.stopped.wait(min(_random.uniform(0, pause), left_seconds)):
                raise StoppedError

    def listen(self, work: Callable[[Tell], None]) -> Generator[Any]:
        """What a thread of its own tells while it speaks to the store, until it has ended.

        The thread may block for ever, whatever blocks (name resolution, credentials, connecting,
        the server): it touches nothing but its connection, so that it can be left behind.

        Args:
            work: called with what to tell by; each thing that it tells is progress.

        Raises:
            TimeoutError: it told nothing for the timeout.
            StoppedError: the request is no longer wanted.
            Exception: what it raised.
        """
        told: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(_AHEAD)
        abandoned = threading.Event()

        def tell(item: Any) -> None:
            if abandoned.is_set():
                raise StoppedError
            told.put((item, None, False))

        def speak() -> None:
            error: BaseException | None = None
            try:
                work(tell)
            except BaseException as raised:
                error = raised
            if not abandoned.is_set():
                told.put((None, error, True))

        threading.Thread(target=speak, name="transfer", daemon=True).start()
        try:
            while True:
                item, error, is_end = self._next(told)
                if error is not None:
                    raise error
                if is_end:
                    return
                yield item
        finally:
            abandoned.set()
            # It may wait for room to tell.
            with contextlib.suppress(queue.Empty):
                while True:
                    told.get_nowait()

    def ask(self, work: Callable[[], Result]) -> Result:
        """The answer to a small request, made in a thread of its own, as `listen`."""
        answers: Iterator[Result] = self.listen(lambda tell: tell(work()))
        return next(answers)

    def _next(self, told: "queue.Queue[Any]") -> Any:
        waiting_since = time.monotonic()
        while True:
            if self.stopped.is_set():
                raise StoppedError
            waited = time.monotonic() - waiting_since
            if waited >= self._deadline_seconds:
                raise TimeoutError(f"no answer within {self._deadline_seconds:g} s")
            try:
                return told.get(timeout=min(_TICK_SECONDS, self._deadline_seconds - waited))
            except queue.Empty:
                if waited >= INTERVAL_SECONDS:
                    notice(f"waiting to {self.doing}: nothing moved for {waited:.0f} s")

    def _given_up(self, attempts: int, text: str, *, lost_seconds: float) -> str:
        tried = f"{attempts} attempt{'s' if attempts > 1 else ''}"
        if self.stalled_seconds >= 1:
            tried += " after those of another process"
        return (
            f"Could not {self.doing}: {tried}, and nothing for {lost_seconds:.0f} s since the "
            f"first failure; the last: {text}; check that {self.store} can be reached and is the "
            "store that is meant (storage.endpoint_url, S3_ENDPOINT_URL), or raise "
            f"storage.retry_budget_seconds ({self.storage.retry_budget_seconds:g})"
        )
