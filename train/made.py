"""The last steps of a run: launched, made, saved."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Self

from parallel.launch import peak_memory_bytes
from train.checkpoint.saver import Saver
from train.config import RunConfig
from train.data.ledger import LedgerWriter
from train.data.plan import Position
from train.errors import CheckpointError, DivergedError, InUseError, UserError
from train.prepare import agreed
from train.step import PendingStep
from train.watch.metrics import TrainRecord
from train.watch.monitor import Monitor


@dataclass(frozen=True, kw_only=True)
class _Launched:
    step: int
    pending: PendingStep
    position: Position
    learning_rate: float
    started: float


class Made:
    """The last step that was launched, until it is known to be made; and made, until it is saved.

    As a context it saves the last step that was made before an error ends the run, if all ranks
    know of the error between two steps: data, validation or ledger cannot be read or written.

    Args:
        config: of the run.
        save: begins to save a step, with its position in the data.
        saver: what saves.
        ledger: this rank's, brought to the disk before.
        monitor: told of what is made, and of what is saved in the end.
        imported: `time.perf_counter()` when imports had ended.
    """

    def __init__(
        self,
        config: RunConfig,
        save: Callable[[int, Position], None],
        saver: Saver,
        ledger: LedgerWriter | None,
        monitor: Monitor,
        *,
        imported: float,
    ) -> None:
        self.seconds_to_first_step: float | None = None
        self._config = config
        self._save = save
        self._saver = saver
        self._ledger = ledger
        self._monitor = monitor
        self._imported = imported
        self._launched: _Launched | None = None
        self._settled = 0.0
        self._waited = 0.0
        self._unsaved: tuple[int, Position] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        if kind is None or not issubclass(kind, UserError):
            return
        if issubclass(kind, CheckpointError | DivergedError | InUseError):
            return  # nothing can be saved, or should
        try:
            self.settle()
        except DivergedError as diverged:
            self._monitor.note(str(diverged))
            return
        if self._unsaved is None:
            return
        step = self._unsaved[0]
        # Where the ledger cannot be brought to the disk, its gap is a smaller loss than the steps.
        with contextlib.suppress(UserError):
            self._settle_ledger()
        try:
            self._save(*self._unsaved)
            self._saver.finish()
        except CheckpointError as second:
            raise kind(f"{error}; nor could step {step} be saved: {second}") from second
        self._monitor.note(f"step {step} is saved, and the run ends")

    def add(
        self,
        step: int,
        pending: PendingStep,
        position: Position,
        *,
        lr: float,
        started: float,
    ) -> None:
        """Take note of a step that was launched; the one before is settled.

        Args:
            step: its number.
            pending: what becomes of it.
            position: in the data, after it.
            lr: its learning rate.
            started: `time.perf_counter()` when it began.
        """
        assert self._launched is None, "settled before the next update"
        self._launched = _Launched(
            step=step,
            pending=pending,
            position=position,
            learning_rate=lr,
            started=started,
        )

    def wait(self, seconds: float) -> None:
        """Take note of seconds that data were waited for; before the last step is settled."""
        self._waited += seconds

    def settle(self) -> None:
        """Wait for what was launched last, and record it; every rank must call it.

        Raises:
            DivergedError: it was no step.
        """
        launched, self._launched = self._launched, None
        if launched is None:
            return
        result = launched.pending.result()
        # Where the host runs ahead, a step takes from the end of the last one to its own.
        before, self._settled = max(self._settled, launched.started), time.perf_counter()
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = self._settled - self._imported
        waited, self._waited = self._waited, 0.0
        self._unsaved = launched.step, launched.position
        if launched.pending.is_passed_over:
            return
        config = self._config
        self._monitor.write(
            TrainRecord(
                step=launched.step,
                learning_rate=launched.learning_rate,
                gradient_norm=result.gradient_norm,
                tokens=config.batch.sequences * config.data.sequence_tokens,
                step_seconds=self._settled - before,
                # Where the host runs ahead, it waited in this step's time for the next one's data.
                data_wait_seconds=min(waited, self._settled - before),
                memory_bytes=peak_memory_bytes(),
                **asdict(result.averages),
            )
        )

    def save(self) -> None:
        """Save the last step; every rank must call it.

        Raises:
            RunDirectoryError: some rank's ledger lacks steps.
            CheckpointError: as `Saver.save` says.
        """
        assert self._unsaved is not None, "only once"
        self._settle_ledger()
        self._save(*self._unsaved)
        self._unsaved = None

    def _settle_ledger(self) -> None:
        agreed(lambda: self._ledger.settle() if self._ledger is not None else None)
