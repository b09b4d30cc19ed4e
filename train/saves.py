"""Where a run is saved and what it goes on from: its checkpoints, and those on its nodes' disks."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Self

from parallel.agreement import on_first_rank
from parallel.launch import World
from parallel.zero.engine import ZeroEngine
from train.checkpoint.background import TakenOverError
from train.checkpoint.directory import complete, step_of
from train.checkpoint.local.disks import Disks
from train.checkpoint.local.finding import whole_steps
from train.checkpoint.local.saver import LocalSaver
from train.checkpoint.restore import read_state
from train.checkpoint.saver import Saver
from train.claim import refuse_other_run
from train.config import RunConfig
from train.data.plan import Position
from train.errors import CheckpointError, LocalCheckpointError, RunDirectoryError, UserError
from train.mirror import Mirror
from train.prepare import Run, RunState, Saved, agreed, find_left_out, prepare
from train.storage.place import Place
from train.watch.monitor import Monitor
from train.wrong_numbers.left_out import LeftOut

State = Callable[[int, Position], Mapping[str, Any]]
"""What a checkpoint keeps of a step beside the tensors, given the position after it."""


def disks_of(config: RunConfig) -> Disks | None:
    """The nodes' own disks, if the run saves there; every rank must call it.

    Raises:
        UserError: they cannot be used as the configuration says.
    """
    local = config.checkpoint.local
    if local is None:
        return None
    directory = agreed(lambda: Place.parse(local.directory, config.storage))
    run = config.directory
    return Disks(local, directory, label=run.path.name, id_file=Place.of(run.local))


def starts(
    config: RunConfig,
    checkpoints: Place,
    stored: Saved | None,
    disks: Disks | None,
    *,
    mirror: Mirror | None,
) -> Iterator[Saved | None]:
    """What the run may go on from, the newest first; every rank must ask for as many.

    The numbers of what is on the nodes' disks are not looked at: who finds damage takes the next.
    What comes last is what is stored, or that there is nothing, and the run begins.

    Args:
        config: of the run.
        checkpoints: where its checkpoints lie.
        stored: the newest of these.
        disks: of the nodes, if the run saves there.
        mirror: of the run's directory; on the first rank, if it has one.

    Raises:
        UserError: what is on the disks is of another run.
    """
    if disks is None or disks.home is None:
        yield stored
        return

    stored_step = 0 if stored is None else stored.step

    def is_behind() -> bool:
        """Whether the run has gone back to an earlier checkpoint, or on in another directory."""
        if mirror is not None and mirror.is_ahead():
            return True  # no file that counts says anything of the steps on the disks
        return stored is not None and complete(checkpoints)[-1:] != [stored.path.name]

    # What was saved on the disks before may be of steps that were undone.
    disks.is_undone = on_first_rank(is_behind, UserError)
    if disks.is_undone:
        yield stored
        return
    remarks = disks.remarks
    for step in whole_steps(disks.home, disks.nodes, at_least=stored_step, remarks=remarks):

        def state_of_run(path: Place = step.path) -> RunState:
            saved = Saved(path=path, state=read_state(path, RunState))
            refuse_other_run(config, saved.config, path)
            return saved.state

        def is_contradicted(saved: Saved) -> bool:
            """Whether it has made a step that is to be left out."""
            known = {each.step for each in saved.state.left_out}
            later = () if stored is None else stored.state.left_out
            try:
                find_left_out(config, saved)
            except RunDirectoryError:
                return True
            return any(each.step <= saved.step and each.step not in known for each in later)

        state = on_first_rank(state_of_run, UserError)
        # Where nothing is stored any more, the disks have all that is left.
        disks.is_undone = stored is not None and state.stored_step > stored_step
        if disks.is_undone:
            break
        saved = Saved(path=step.path, state=state, local=step)
        if not on_first_rank(partial(is_contradicted, saved), UserError):
            yield saved
    yield stored


def prepared(
    config: RunConfig,
    world: World,
    saved: Iterator[Saved | None],
    disks: Disks | None,
    *,
    mirror: Mirror | None,
) -> tuple[Run, Saved | None, LeftOut]:
    """Prepares a run; every rank must call it.

    Args:
        config: with its precision resolved.
        world: this process among all.
        saved: what it may go on from, of which the first is taken that can be read.
        disks: of the nodes, if the run saves there; told what could not be read.
        mirror: of the run's directory; on the first rank, if it has one.

    Returns:
        Its parts; what it goes on from; the steps that it leaves out.

    Raises:
        UserError: as `find_left_out` and `prepare`.
    """
    while True:
        first = next(saved)
        left_out = on_first_rank(partial(find_left_out, config, first, mirror=mirror), UserError)
        try:
            return prepare(config, world, saved=first), first, left_out
        except LocalCheckpointError as error:
            assert disks is not None
            disks.remarks.append(str(error))
        gc.collect()  # there is no room for two engines


class Saves:
    """Saves a run, in both places; made once, by every rank.

    As a context it finishes what is being written, see `BackgroundSaver`.

    Args:
        config: of the run.
        engine: what to save.
        checkpoints: where its checkpoints lie.
        stored: the newest of these when it began.
        disks: of the nodes, if it saves there.
        state: what else to keep.
        monitor: told of what cannot be written.
        guard: as for `Saver`.
        before_commit: likewise.
        turn: likewise.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: ZeroEngine,
        *,
        checkpoints: Place,
        stored: Saved | None,
        disks: Disks | None,
        state: State,
        monitor: Monitor,
        guard: Callable[[], object],
        before_commit: Callable[[], object],
        turn: Callable[[], int] = lambda: 1,
    ) -> None:
        is_asynchronous = config.checkpoint.asynchronous
        self._disks = disks
        self._local = None if disks is None else LocalSaver(disks, asynchronous=is_asynchronous)
        self._saver = Saver(
            checkpoints,
            retention=config.checkpoint.retention,
            continues=None if stored is None else stored.path,
            asynchronous=is_asynchronous,
            guard=guard,
            before_commit=before_commit,
            turn=turn,
            elsewhere=lambda: self._is_near,
        )
        self._engine = engine
        self._state = state
        self._monitor = monitor
        self._exits = contextlib.ExitStack()
        self._step: int | None = None
        self._told = False

    def __enter__(self) -> Self:
        self._exits.enter_context(self._saver)
        if self._local is not None:
            self._exits.enter_context(self._local)
        for remark in () if self._disks is None else self._disks.remarks:
            self._monitor.note(remark)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._exits.__exit__(*raised)

    @property
    def _is_near(self) -> bool:
        """Whether the last step that was to be on the nodes' disks is there."""
        return self._local is not None and self._local.is_well

    def save(self, step: int, position: Position, *, waits: bool = True) -> bool:
        """Begin to write a step to the run's checkpoints; every rank must call it.

        Args:
            step: steps made so far.
            position: in the data, after them.
            waits: for the one before; else, where that is still being written and the last step is
                on the nodes' disks, this one is left out.

        Returns:
            Whether it is being written.

        Raises:
            CheckpointError: as `Saver.save`.
        """
        if self._is_near and not waits and self._saver.is_busy():
            self._monitor.note(
                f"alarm: the checkpoint before is still being written, and step {step} is left out;"
                " the nodes' own disks have the last step that was to be there"
            )
            return False
        self._step = step
        lost = self._saver.save(self._engine, self._state(step, position), step=step)
        if lost is not None:
            self._monitor.note(f"alarm: {lost}; the checkpoint of step {step} is tried instead")
        return True

    def save_locally(self, step: int, position: Position, *, waits: bool) -> None:
        """Begin to write a step to the nodes' disks, if that is asked for; never fails.

        Args:
            step: steps made so far.
            position: in the data, after them.
            waits: for the one before; else this step is left out where that is being written.
        """
        if self._local is None:
            return
        newest = self._saver.newest
        state = {
            **self._state(step, position),
            "stored_step": 0 if newest is None else step_of(newest),
        }
        self._tell(self._local.save(self._engine, state, step=step, waits=waits))

    def finish(self) -> Place:
        """Wait until everything is written; every rank must call it.

        Returns:
            The last step that was saved.

        Raises:
            CheckpointError: it could not be written in either place.
        """
        local = None if self._local is None else self._local.settle()
        try:
            return self._saver.finish()
        except CheckpointError as error:
            is_there = local is not None and step_of(local) == self._step
            if isinstance(error, TakenOverError) or local is None or not is_there:
                raise
            self._monitor.note(f"alarm: {error}; step {self._step} is on the nodes' own disks")
            return local

    def clear(self) -> None:
        """Remove what lies on the nodes' disks: the run is complete."""
        if self._disks is not None:
            self._disks.remove()

    def go_back(self, is_meant: Callable[[Place], bool]) -> Place | None:
        """As `Saver.go_back`; what lies on the nodes' disks is forgotten, if there is one."""
        forget = (lambda: None) if self._local is None else self._local.begin_anew
        return self._saver.go_back(is_meant, tell=self._monitor.note, once_found=forget)

    def _tell(self, lost: CheckpointError | None) -> None:
        """Tell once that saving fails, and that it goes well again."""
        if lost is not None and not self._told:
            self._monitor.note(f"alarm: {lost}; training goes on, and it is tried again")
        if lost is None and self._told:
            self._monitor.note("the nodes' own disks can be written again")
        self._told = lost is not None
