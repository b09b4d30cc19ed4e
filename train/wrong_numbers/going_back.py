"""Back to the last checkpoint before spikes, which are left out from then on."""

from collections.abc import Callable

from parallel.agreement import on_all_ranks, on_first_rank
from parallel.zero.engine import ZeroEngine
from train.checkpoint.restore import read_state, restore
from train.config import RunConfig
from train.data.feed import Feed
from train.data.ledger import LedgerWriter
from train.errors import DivergedError, UserError
from train.made import Made
from train.prepare import RunState
from train.saves import Saves
from train.step import Gradients
from train.storage.place import Place
from train.watch.heartbeat import Heartbeat, Section
from train.watch.metrics import LeftOutRecord
from train.watch.monitor import Monitor
from train.wrong_numbers.again import forget
from train.wrong_numbers.left_out import LeftOut
from train.wrong_numbers.spikes import Spikes


class GoingBack:
    """Takes a run back to where it was before spikes.

    Args:
        config: of the run.
        engine: the model under ZeRO.
        left_out: steps of the run; spikes are added.
        spikes: finds them.
        saves: has the checkpoints.
        monitor: told of it.
        open_ledger: begins another part of the ledger, behind a step.
        beat: told that a step takes longer than usual.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: ZeroEngine,
        left_out: LeftOut,
        spikes: Spikes,
        saves: Saves,
        monitor: Monitor,
        open_ledger: Callable[[int], LedgerWriter | None],
        beat: Heartbeat,
    ) -> None:
        self._config = config
        self._engine = engine
        self._left_out = left_out
        self._spikes = spikes
        self._saves = saves
        self._monitor = monitor
        self._open_ledger = open_ledger
        self._beat = beat

    def before(self, feed: Feed, made: Made, *, under_way: Gradients | None = None) -> int | None:
        """Go back to the last checkpoint before the spikes found; every rank must call it.

        Args:
            feed: has the step behind the checkpoint come next.
            made: forgets what was made since.
            under_way: of a later step, if it has been accumulated since; it is lost.

        Returns:
            The steps of the checkpoint; None if there is none before the spikes, which stay.

        Raises:
            DivergedError: more steps would be left out for spikes than may be.
            UserError: the checkpoint cannot be read; or what is left out cannot be kept.
        """
        config, left_out, is_main = self._config, self._left_out, self._engine.mesh.world.is_main
        found, made.spikes_found = made.spikes_found, None
        assert config.spikes is not None, "or none were found"
        assert found is not None, "asked first"
        self._beat.enter(Section.START, step=found[-1])
        told = f"steps {found[0]} to {found[-1]} are spikes of loss or gradient norm"
        before = left_out.among(range(config.steps + 1), "spike")
        if before + len(found) > config.spikes.most_steps:
            raise DivergedError(
                f"{told}, and {before} steps were left out for that already (spikes.most_steps): "
                "lower optim.lr, or look at the data"
            )

        def is_meant(path: Place) -> bool:
            state = read_state(path, RunState)
            known = {each.step for each in state.left_out}
            made_wrong = any(step <= state.step and step not in known for step in left_out)
            return state.step < found[0] and not made_wrong

        path = self._saves.go_back(is_meant)
        if path is None:
            self._monitor.note(f"{told}, but there is no checkpoint before them: the run goes on")
            return None
        # Whatever fails from here on, what was made with the spikes is not to be saved.
        made.forget()
        left_out.add(found, "spike")
        file = Place.of(config.directory.left_out)
        on_all_ranks(lambda: left_out.write(file) if is_main else None, UserError)
        forget(self._engine, under_way)
        restore(path, self._engine)
        state = on_first_rank(lambda: read_state(path, RunState), UserError)
        self._spikes.seen = state.spikes
        feed.go_back(state.step, state.data)
        made.ledger = self._open_ledger(state.step)
        for step in found:
            self._monitor.write(LeftOutRecord(step=step, reason="spike"))
        self._monitor.note(f"{told}: back to step {state.step}, and they are left out")
        return state.step
