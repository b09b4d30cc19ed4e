"""Weights & Biases, kept at arm's length: a daemon thread that training never waits for.

wandb blocks where a training loop must not: its import takes half a second, `init` waits for a
server (up to 100 s when there is none), `finish` uploads without a bound, and its exit handler
waits for its service process. So everything it does happens in one thread, fed by a queue, and
what does not end in time is cut off. Whatever W&B misses is still in `metrics.jsonl`, and
`python -m tools.wandb_sync` uploads it.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, Literal

from train.config import RunConfig
from train.errors import UserError
from train.watch.metrics import WANDB_UNREACHABLE, NoteRecord, Record, read_metrics
from train.watch.wandb_run.rows import Row, Rows, recorded
from train.watch.wandb_run.session import (
    Session,
    clear_up,
    describe,
    end_services,
    kill_services,
    last_step_of,
    service_lives,
)
from train.watch.wandb_run.switches import each_start_is_a_run

MAX_WAITING = 10_000
"""Records that may wait for W&B; beyond that they are dropped, so that memory stays bounded."""

MAX_KEPT = 2_000
"""Rows that are kept for a service that takes the place of one that has died. It has lost what it
had not uploaded, some seconds, or not written, some hundred."""

MAX_SERVICES: Final = 5
"""Services that may die before W&B is given up."""

INIT_SECONDS = 12.0
"""How long an online run waits for the server."""

FINISH_SECONDS = 20.0
"""How long `finish` may take. Longer than `INIT_SECONDS`, so that a short run without a server
still gets its offline files."""

CUT_OFF_SECONDS = 2.0
"""How long the thread may take to notice that its service was killed."""


class WandbWriter:
    """Writes one W&B run from a thread of its own; no method raises or waits, save `finish`.

    Online, an unreachable server turns the run into an offline one. A service that dies is replaced
    by another, which is given the rows that W&B lacks. What W&B reads from the environment holds
    where the configuration does not say another thing.

    Args:
        config: of the run; shown with it.
        run_id: id of the run; the same after every restart, see `run_id_of`.
        mode: see `mode_of`.
        first_step: after which this start goes on. What the server lacks up to there it is given
            from `metrics.jsonl`.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        run_id: str,
        mode: Literal["offline", "online"],
        first_step: int = 0,
    ) -> None:
        self._config = config
        self._mode: Literal["offline", "online"] = mode
        self._run_id = run_id
        self._first_step = first_step
        # Records, and at the end the exit code.
        self._queue: queue.Queue[Record | int] = queue.Queue(maxsize=MAX_WAITING)
        self._exit_code: int | None = None
        self._rows: Rows | None = None
        self._kept: deque[Row] = deque(maxlen=MAX_KEPT)
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._dropped = False
        self._cut_off = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="wandb-writer", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Queues a record, if it is of a kind that W&B shows."""
        if isinstance(record, NoteRecord) or not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                self._notes.put(
                    "W&B does not keep up; it misses records that metrics.jsonl still has"
                )

    def take_notes(self) -> list[str]:
        """What the thread has to say to the user since the last call."""
        notes = []
        while not self._notes.empty():
            notes.append(self._notes.get_nowait())
        return notes

    def finish(self, *, exit_code: int = 0) -> None:
        """Ends the run; returns within the bound, leaving nothing behind that could hang the exit.

        Args:
            exit_code: non-zero marks the run as failed.
        """
        until = time.monotonic() + FINISH_SECONDS
        while self._thread.is_alive() and time.monotonic() < until:
            with contextlib.suppress(queue.Full):  # then it waits for room
                self._queue.put(exit_code, timeout=0.1)
                break
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._cut_off.set()
            kill_services()
            self._thread.join(CUT_OFF_SECONDS)
            self._notes.put(
                f"W&B did not finish within {FINISH_SECONDS:.0f} s and was cut off; "
                "metrics.jsonl has every record"
            )

    def leave(self) -> None:
        """Ends this writer, and not the run, which another process records by now."""
        self._cut_off.set()
        kill_services()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(1)
        self._thread.join(CUT_OFF_SECONDS)

    def _serve(self) -> None:
        try:
            clear_up(self._config, self._run_id)
            for services in range(1, MAX_SERVICES + 1):
                if self._is_written(is_last=services == MAX_SERVICES):
                    return
        except Exception as error:
            if not self._cut_off.is_set():
                self._notes.put(f"W&B stopped: {describe(error)}; metrics.jsonl has every record")

    def _is_written(self, *, is_last: bool) -> bool:
        """Give all rows to a service; whether it has lived to the end."""
        session: Session | None = None
        try:
            session = self._opened()
            self._write_rows(session)
            return True
        except Exception as error:
            is_ours = isinstance(error, ImportError) or self._cut_off.is_set()
            if is_ours or is_last or service_lives():
                raise
            self._notes.put(f"W&B's service has died ({describe(error)}): another takes its place")
            if session is not None and self._mode == "offline":
                written = last_step_of(session.file)
                while self._kept and self._kept[0].step <= written:
                    self._kept.popleft()
            return False
        finally:
            # Within the bound: wandb's own exit handler waits without one.
            end_services()

    def _opened(self) -> Session:
        if self._mode == "online":
            try:
                return self._session("online")
            except Exception as error:
                if not service_lives():
                    raise
                self._mode = "offline"
                self._notes.put(
                    f"{WANDB_UNREACHABLE}: {describe(error)}; "
                    f"later: python -m tools.wandb_sync {self._config.directory}"
                )
                end_services()
        return self._session("offline")

    def _session(self, mode: Literal["offline", "online"]) -> Session:
        return Session(
            self._config,
            run_id=self._run_id,
            mode=mode,
            init_seconds=INIT_SECONDS,
            # Its own bound comes first: an upload cut off by wandb ends tidier than one by us.
            finish_seconds=0.75 * FINISH_SECONDS,
        )

    def _write_rows(self, session: Session) -> None:
        if self._rows is None:
            rows = Rows(after=session.known_step, left_out=session.known_left_out)
            lacks = self._first_step > max(0, session.known_step)
            if lacks and self._mode == "online" and not each_start_is_a_run():
                for record in self._recorded():
                    self._log(session, rows.add(record))
            self._rows = rows
        else:
            for row in self._kept:
                if row.step > session.known_step:
                    session.log(row)
        while self._exit_code is None:
            item = self._queue.get()
            if isinstance(item, int):
                self._exit_code = item
                self._log(session, self._rows.rest())
            else:
                self._log(session, self._rows.add(item))
        session.finish(exit_code=self._exit_code)

    def _log(self, session: Session, rows: list[Row]) -> None:
        # Kept first: one that a dying service does not take is the next one's.
        self._kept += rows
        for row in rows:
            session.log(row)

    def _recorded(self) -> Iterator[Record]:
        """What was recorded before this start, up to where it goes on."""
        try:
            metrics = read_metrics(self._config.directory.metrics)
        except UserError as error:
            self._notes.put(f"W&B lacks steps up to {self._first_step}: {error}")
            return
        yield from (each for each in recorded(metrics) if each.step <= self._first_step)
