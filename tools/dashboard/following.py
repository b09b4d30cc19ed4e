"""A run that is followed: what it has recorded since the last look, as messages for `shown`."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from tools.dashboard.thinning import Thinning
from tools.keep.attempt import ATTEMPTS_NAME, Attempt
from train.run_directory import RunDirectory
from train.watch.hardware import HardwareUse
from train.watch.metrics import (
    LeftOutRecord,
    NoteRecord,
    Record,
    RunRecord,
    TrainRecord,
    parse_record,
)
from train.watch.wandb_run.rows import Row, Rows

PIECE_BYTES: Final = 1 << 22
"""Read at once of one run, so that no long one keeps the others waiting."""

USE_SECONDS: Final = 60.0
"""At least between two looks at hardware that are shown."""

IDLE_SECONDS: Final = 15.0
"""Without a record; then the rows under way are shown as they stand."""

_HEAD_BYTES: Final = 1 << 12
"""Of a run's first record, which says when it began, and more."""
_MIB: Final = 2**20

Message = dict[str, Any]


class Followed:
    """A run's directory, read piece by piece.

    Steps that are made again after a restart have their rows, as at W&B. A row comes once the next
    step has begun; of a long run once its stretch is over, see `Thinning`.

    Args:
        path: of the run.
        name: under which it is shown.
    """

    def __init__(self, path: Path, *, name: str) -> None:
        self._directory = RunDirectory(path)
        self._name = name
        self._begin()

    def _begin(self) -> None:
        """Nothing is known yet of what lies there."""
        self._head = b""
        """The beginning of its records, as far as it has been seen."""
        self._offsets: defaultdict[Path, int] = defaultdict(int)
        self._last_use: dict[Path, float] = {}
        self._rows = Rows()
        self._thinning = Thinning(total_steps=1)
        self._starts = 0
        self._clock = 0.0
        """Wall-clock time of the step under way, as far as records tell."""
        self._idle_since: float | None = None

    def news(self) -> Iterator[Message]:
        """What was recorded since the last call, up to a bound.

        Where another run has begun in the directory, which was removed before, it is shown in the
        place of the one before.
        """
        if self._is_another():
            self._begin()
            yield self._message(anew=True)
        records = list(self._records())
        rows: list[Row] = []
        alerts: list[dict[str, Any]] = []
        for record in records:
            rows += self._thinned(self._rows.add(record))
            self._take_note(record, alerts)
        if self._is_idle(is_news=bool(records)):
            rows += [*self._thinned(self._rows.flush()), *self._thinning.rest()]
        alerts += self._new_attempts()
        if rows:
            yield self._message(rows=[self._shown(row) for row in rows])
        if alerts:
            yield self._message(alerts=alerts)
        if hardware := [told for path in self._nodes() for told in self._uses(path)]:
            yield self._message(hardware=hardware)

    def _message(self, **content: Any) -> Message:
        return {"run": self._name, **content}

    def _is_another(self) -> bool:
        """Whether the records begin in another way than they did: a run's are only added to."""
        try:
            with self._directory.metrics.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError:  # gone, or not there yet
            return False
        before, self._head = self._head, head
        return not head.startswith(before[: before.rfind(b"\n") + 1])

    def _new_lines(self, path: Path) -> list[bytes]:
        """The whole lines that a file has got since the last call, up to a bound."""
        try:
            with path.open("rb") as file:
                # Written anew, as after the directory was removed: what is known stays.
                offset = min(self._offsets[path], file.seek(0, os.SEEK_END))
                file.seek(offset)
                piece = file.read(PIECE_BYTES)
        except OSError:  # a directory that has gone, or is not to be read: perhaps later
            return []
        whole = piece[: piece.rfind(b"\n") + 1]
        if len(piece) == PIECE_BYTES and not whole:  # no line of ours is so long: it is damaged
            whole = piece
        self._offsets[path] = offset + len(whole)
        return whole.splitlines()

    def _nodes(self) -> list[Path]:
        return sorted(self._directory.hardware.glob("*.jsonl"))

    def _uses(self, path: Path) -> Iterator[dict[str, Any]]:
        """What a node's hardware did, thinned: a browser needs no more than a look a minute."""
        for line in self._new_lines(path):
            with contextlib.suppress(ValidationError):
                use = HardwareUse.model_validate_json(line, strict=True)
                if use.time - self._last_use.get(path, 0.0) >= USE_SECONDS:
                    self._last_use[path] = use.time
                    yield {"time": _iso(use.time), "values": dict(_named(use))}

    def _records(self) -> Iterator[Record]:
        for line in self._new_lines(self._directory.metrics):
            try:
                record = parse_record(line)
            except ValidationError:
                continue  # `tools.report` names it
            if record is not None:
                yield record

    def _is_idle(self, *, is_news: bool) -> bool:
        """Whether there has been nothing for a while; said once."""
        if is_news:
            self._idle_since = time.monotonic()
        elif self._idle_since is not None and time.monotonic() - self._idle_since > IDLE_SECONDS:
            self._idle_since = None
            return True
        return False

    def _thinned(self, rows: list[Row]) -> list[Row]:
        """Those of the rows that are complete, and of earlier ones, that are to be shown now."""
        for row in rows:
            row.values |= {"marks/start": self._starts, "time": self._clock}
        return [kept for row in rows for kept in self._thinning.add(row)]

    def _take_note(self, record: Record, alerts: list[dict[str, Any]]) -> None:
        told: tuple[str, str, str] | None = None
        match record:
            case RunRecord():
                self._starts += 1
                if self._starts == 1:
                    self._thinning = Thinning(total_steps=record.total_steps)
                self._clock = max(self._clock, record.started)
                on = f"after step {record.step:,}, {record.num_ranks} ranks on {record.machine}"
                told = (f"start {self._starts}", on, "info")
            case TrainRecord():
                self._clock += record.step_seconds
            case LeftOutRecord():
                told = (f"step {record.step:,} is left out", record.reason, "error")
            case NoteRecord():
                told = (record.text[:80], record.text, "info")
            case _:
                pass
        if told is not None:
            title, text, level = told
            alerts.append(_alert(title, text, level, step=record.step, seconds=self._clock))

    def _new_attempts(self) -> Iterator[dict[str, Any]]:
        """How attempts ended that a keeper saw: which rank on which node, and of what."""
        for line in self._new_lines(self._directory.path / ATTEMPTS_NAME):
            try:
                attempt = Attempt.model_validate_json(line, strict=True)
            except ValidationError:
                continue  # `tools.status` names it
            verdict = attempt.verdict
            is_well = verdict.kind in ("complete", "stopped by a signal")
            node = f" on {verdict.node}" if verdict.node is not None else ""
            rank = f": rank {verdict.rank}{node}" if verdict.rank is not None else ""
            yield _alert(
                f"{verdict.kind}{rank}",
                verdict.sentence,
                "info" if is_well else "error",
                step=verdict.step if verdict.step is not None else attempt.last_step,
                seconds=attempt.ended,
            )

    def _shown(self, row: Row) -> dict[str, Any]:
        samples = "\n\n".join(f"**{prompt}**▸{text}" for _, prompt, text in row.samples)
        seconds = row.values.pop("time")
        return {"step": row.step, "time": _iso(seconds), "values": row.values, "samples": samples}


def _named(use: HardwareUse) -> Iterator[tuple[str, float]]:
    """What a node does, under the names of charts: one a quantity, with a line for each node."""
    seconds = max(use.seconds, 1e-9)
    yield f"processor/{use.node}", use.processor_fraction
    yield f"memory/{use.node}", use.memory_fraction
    yield f"disk_mib_per_second/{use.node}", (use.read_bytes + use.written_bytes) / _MIB / seconds
    yield f"net_mib_per_second/{use.node}", (use.sent_bytes + use.received_bytes) / _MIB / seconds
    for number, gpu in enumerate(use.gpus):
        for name in ("busy_fraction", "memory_bytes", "celsius", "watts"):
            if (value := getattr(gpu, name)) is not None:
                yield f"gpu_{name}/{use.node}.{number}", value


def _alert(
    title: str, text: str, level: str, *, step: int | None, seconds: float
) -> dict[str, Any]:
    told = {"title": title, "text": text, "level": level}
    return {**told, "step": step, "time": _iso(seconds)}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat()
