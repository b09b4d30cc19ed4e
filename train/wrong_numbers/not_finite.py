"""What is done about a step that is not finite: another look, a verdict, and a limit."""

from parallel.agreement import on_all_ranks
from parallel.zero.engine import ZeroEngine
from train.config import RunConfig
from train.data.feed import Feed, StepData
from train.errors import DivergedError, HardwareError, SomeHardwareError, UserError
from train.step import Gradients, PendingStep, reseed
from train.storage.place import Place
from train.watch.heartbeat import Heartbeat, Section
from train.wrong_numbers.again import Repetition, compute_again
from train.wrong_numbers.broken import broken_samples
from train.wrong_numbers.left_out import LeftOut


class NotFinite:
    """Leaves out steps that are not finite for a reason in data or model, as often as it may.

    Args:
        config: of the run.
        engine: the model under ZeRO.
        feed: reads samples again.
        left_out: steps of the run; what is found is added.
        beat: told that a step takes longer than usual.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: ZeroEngine,
        feed: Feed,
        left_out: LeftOut,
        beat: Heartbeat,
    ) -> None:
        self._config = config
        self._engine = engine
        self._feed = feed
        self._left_out = left_out
        self._beat = beat

    def step_over(
        self,
        step: int,
        data: StepData,
        pending: PendingStep,
        fault: FloatingPointError,
        *,
        under_way: Gradients | None = None,
    ) -> str:
        """Leave out a step from now on, if data or model are to blame; every rank must call it.

        Args:
            step: its number.
            data: what it has read.
            pending: what was launched.
            fault: what it came to.
            under_way: of a later step, if it has been accumulated since; it is lost.

        Returns:
            What is to be said of it.

        Raises:
            HardwareError: computed again it gives another result; on the ranks that are suspected.
            DivergedError: too many steps have come to this.
            RunDirectoryError: what is left out cannot be kept.
        """
        config, mesh = self._config, self._engine.mesh
        self._beat.enter(Section.VALIDATE, step=step)
        reseed(config.seed, step=step, mesh=mesh)
        assert pending.gradients is not None, "it has a loss"
        repetition = compute_again(
            self._engine, data.batches, pending.gradients, under_way=under_way
        )
        if not repetition.is_same:
            raise hardware_error(step, str(fault), repetition, rank=mesh.world.rank)
        found = (
            f"step {step}: {fault}, nor is it when it is computed again from the same state; "
            f"{broken_samples(self._engine, self._feed, step=step, batches=data.batches)}"
        )
        if (limit := self._limit_reached(step)) is not None:
            raise DivergedError(
                f"{found}; {limit}: lower optim.lr, or look at the data; "
                f"{config.directory.left_out} holds the steps that were left out before"
            ) from None
        self._left_out.add([step], "not finite")
        file = Place.of(config.directory.left_out)
        on_all_ranks(lambda: self._left_out.write(file) if mesh.world.is_main else None, UserError)
        return f"{found}: the step is left out"

    def _limit_reached(self, step: int) -> str | None:
        """Why this step may not be left out, too."""
        limits = self._config.not_finite
        row = self._left_out.before(step, "not finite")
        if row >= limits.most_in_a_row:
            return (
                f"{row} steps before it were left out for that already, one after the other "
                "(not_finite.most_in_a_row)"
            )
        window = range(step - limits.window_steps + 1, step)
        among = self._left_out.among(window, "not finite")
        if among >= limits.most_in_window:
            return (
                f"{among} of the last {limits.window_steps} steps were left out for that already "
                "(not_finite.most_in_window)"
            )
        return None


def hardware_error(step: int, fault: str, repetition: Repetition, *, rank: int) -> HardwareError:
    """What a rank raises where a step has come out in two ways."""
    again = "it is" if repetition.is_finite else "something else is not"
    found = f"step {step}: {fault}, and {again} when it is computed again from the same state"
    suspects = repetition.suspects
    if not suspects:
        return SomeHardwareError(
            f"{found}: the hardware of some rank errs, and no sum of losses tells which"
        )
    places = " or ".join(f"rank {each.rank} on {each.node}" for each in suspects)
    told = f"{found}: the hardware of {places} errs"
    if rank not in {each.rank for each in suspects}:
        return HardwareError(f"another rank failed: {told}")
    return HardwareError(told) if len(suspects) == 1 else SomeHardwareError(told)
