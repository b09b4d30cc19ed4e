"""The last steps of a run: launched, made, saved."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from parallel.launch import peak_memory_bytes
from train.config import RunConfig
from train.data.feed import StepData
from train.data.ledger import LedgerWriter
from train.data.plan import Position
from train.errors import CheckpointError, DivergedError, InUseError, UserError
from train.prepare import agreed
from train.saves import Saves
from train.step import Gradients, PendingStep
from train.watch.metrics import LeftOutRecord, SavedRecord, TrainRecord
from train.watch.monitor import Monitor
from train.wrong_numbers.not_finite import NotFinite
from train.wrong_numbers.spikes import Spikes


@dataclass(frozen=True, kw_only=True)
class _Launched:
    step: int
    pending: PendingStep
    data: StepData
    learning_rate: float
    started: float


class Made:
    """The last step that was launched, until it is known to be made; and made, until it is saved.

    As a context it saves the last step that was made before an error ends the run, if all ranks
    know of the error between two steps: data, validation or ledger cannot be read or written.

    Args:
        config: of the run.
        saves: where it is saved.
        ledger: this rank's, brought to the disk before; another one once the run has gone back.
        monitor: told of what is made, and of what is saved in the end.
        not_finite: decides about steps that are.
        spikes: finds them.
        imported: `time.perf_counter()` when imports had ended.
    """

    def __init__(
        self,
        config: RunConfig,
        saves: Saves,
        ledger: LedgerWriter | None,
        monitor: Monitor,
        not_finite: NotFinite,
        spikes: Spikes,
        *,
        imported: float,
    ) -> None:
        self.seconds_to_first_step: float | None = None
        self._config = config
        self._saves = saves
        self.ledger = ledger
        self._monitor = monitor
        self._not_finite = not_finite
        self._spikes = spikes
        self.spikes_found: range | None = None
        """Steps that `settle` has found to be spikes, which are to be left out."""
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
            self._settle()
        except FloatingPointError as fault:
            self._monitor.note(f"the last step counts for nothing: {fault}")
            return
        if self._unsaved is None:
            return
        step = self._unsaved[0]
        if self.spikes_found:
            self._monitor.note(f"step {step} is a spike, and not saved")
            return  # the checkpoint before finds it again, and goes back
        # Where the ledger cannot be brought to the disk, its gap is a smaller loss than the steps.
        with contextlib.suppress(UserError):
            self._settle_ledger()
        try:
            self._saves.save(*self._unsaved)
            self._saves.finish()
        except CheckpointError as second:
            raise kind(f"{error}; nor could step {step} be saved: {second}") from second
        self._monitor.note(f"step {step} is saved, and the run ends")

    def noted(self, step: int, data: StepData | Exception) -> StepData | Exception:
        """What a step reads, once the ledger has it; or why it has nothing, or that cannot be."""
        if self.ledger is None or isinstance(data, Exception):
            return data
        return self.ledger.add(step, data) or data

    def forget(self) -> None:
        """Forget what was made: the run goes back."""
        self._launched = self._unsaved = self.spikes_found = None

    def add(
        self,
        step: int,
        pending: PendingStep,
        data: StepData,
        *,
        lr: float,
        started: float,
    ) -> None:
        """Take note of a step that was launched; the one before is settled.

        Args:
            step: its number.
            pending: what becomes of it.
            data: what it has read.
            lr: its learning rate.
            started: `time.perf_counter()` when it began.
        """
        assert self._launched is None, "settled before the next update"
        self._launched = _Launched(
            step=step,
            pending=pending,
            data=data,
            learning_rate=lr,
            started=started,
        )

    def wait(self, seconds: float) -> None:
        """Take note of seconds that data were waited for; before the last step is settled."""
        self._waited += seconds

    def settle(self, *, under_way: Gradients | None = None) -> bool:
        """Wait for what was launched last, and record it; every rank must call it.

        What is not finite is computed once more, and left out if data or model are to blame.

        Args:
            under_way: what was accumulated since.

        Returns:
            Whether that is lost.

        Raises:
            HardwareError: the step has come out in two ways.
            UserError: it may not be left out as well, or that cannot be kept.
        """
        launched = self._launched
        try:
            self._settle()
        except FloatingPointError as fault:
            assert launched is not None, "or nothing could be wrong"
            step, data = launched.step, launched.data
            note = self._not_finite.step_over(
                step, data, launched.pending, fault, under_way=under_way
            )
            self._leave_out(step, data)
            self._monitor.note(note)
            return under_way is not None
        return False

    def _leave_out(self, step: int, data: StepData) -> None:
        """Note everywhere that a step is, which has been read."""

        def mark() -> None:
            if self.ledger is not None and (error := self.ledger.add(step, data.without())):
                raise error

        self._unsaved = step, data.position
        agreed(mark)
        self._monitor.write(LeftOutRecord(step=step, reason="not finite"))

    def _settle(self) -> None:
        launched, self._launched = self._launched, None
        if launched is None:
            return
        result = launched.pending.result()
        # Where the host runs ahead, a step takes from the end of the last one to its own.
        before, self._settled = max(self._settled, launched.started), time.perf_counter()
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = self._settled - self._imported
        waited, self._waited = self._waited, 0.0
        self._unsaved = launched.step, launched.data.position
        if launched.pending.is_passed_over:
            return
        config = self._config
        self.spikes_found = self._spikes.see(
            launched.step, loss=result.averages.loss, gradient_norm=result.gradient_norm
        )
        tells_norms = launched.step % config.watch.norms_every_steps == 0
        self._monitor.write(
            TrainRecord(
                step=launched.step,
                learning_rate=launched.learning_rate,
                gradient_norm=result.gradient_norm,
                gradient_norms=result.gradient_norms if tells_norms else None,
                tokens=config.batch.sequences * config.data.sequence_tokens,
                step_seconds=self._settled - before,
                # Where the host runs ahead, it waited in this step's time for the next one's data.
                data_wait_seconds=min(waited, self._settled - before),
                memory_bytes=peak_memory_bytes(),
                by_source=self._named(result.by_source),
                **asdict(result.averages),
            )
        )

    def _named(self, by_source: Sequence[float | None]) -> dict[str, float] | None:
        """Losses by the names of their sources; None if there is one source."""
        if not by_source:
            return None
        named = zip(self._config.data.mixed, by_source, strict=True)
        return {name: loss for name, loss in named if loss is not None}

    def save(self, *, waits: bool) -> None:
        """Save the last step; every rank must call it.

        Args:
            waits: for the write before, see `Saves.save`.

        Raises:
            RunDirectoryError: some rank's ledger lacks steps.
            CheckpointError: as `Saver.save` says.
        """
        assert self._unsaved is not None, "only once"
        begun = time.perf_counter()
        self._settle_ledger()
        if self._saves.save(*self._unsaved, waits=waits):
            seconds = time.perf_counter() - begun
            self._monitor.write(SavedRecord(step=self._unsaved[0], seconds=seconds))
            self._unsaved = None

    def save_locally(self, *, waits: bool) -> None:
        """Save the last step on the nodes' disks alone; every rank must call it.

        Args:
            waits: for the write before, see `Saves.save_locally`.

        Raises:
            RunDirectoryError: some rank's ledger lacks steps.
        """
        assert self._unsaved is not None, "before it is saved for good"
        self._settle_ledger()
        self._saves.save_locally(*self._unsaved, waits=waits)

    def _settle_ledger(self) -> None:
        agreed(lambda: self.ledger.settle() if self.ledger is not None else None)
