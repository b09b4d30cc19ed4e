"""Saves training state to a directory that all ranks share, while training goes on.

Each rank writes its own share, and the first one commits. No tensor is gathered on one rank.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from typing_extensions import override

from parallel.agreement import gathered, on_all_ranks, on_first_rank
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import StateSlice
from train.checkpoint.background import BackgroundSaver, TakenOverError, write_share
from train.checkpoint.directory import (
    Retention,
    announce,
    clean,
    commit,
    complete,
    point_to,
    pointed_to,
    stage,
    withdraw,
)
from train.checkpoint.format import Index, seal
from train.errors import CheckpointError, InUseError
from train.storage.place import Place

_NAME_SHOWN = 80


class Saver(BackgroundSaver):
    """Writes a run's checkpoints, one after another; made once, by every rank.

    A crash at any instant leaves the previous checkpoint whole. As a context it finishes the last
    write, see `BackgroundSaver`.
    """

    def __init__(
        self,
        directory: Place | Path,
        *,
        retention: Retention,
        continues: Place | None = None,
        asynchronous: bool = True,
        guard: Callable[[], object] = lambda: None,
        before_commit: Callable[[], object] = lambda: None,
        elsewhere: Callable[[], bool] = lambda: False,
        turn: Callable[[], int] = lambda: 1,
    ) -> None:
        """Prepares for saving; every rank must call it.

        Args:
            directory: where the run's checkpoints live, on storage that all ranks share.
            retention: which earlier ones stay.
            continues: the checkpoint in `directory` that the run goes on from. Where another one
                is the newest, another run has been here, and nothing is removed or committed.
            asynchronous: write in the background, from a copy of this rank's share in host
                memory; else write before `save` returns, without the copy.
            guard: called on the first rank before anything is removed or committed; raises
                InUseError where the directory is no longer this run's.
            before_commit: called on the first rank once all ranks have written their shares and
                before the checkpoint is whole; one that raises OSError keeps it from that.
            elsewhere: whether training is saved elsewhere as well, so that it may go on however
                often it cannot be saved here; the same on all ranks.
            turn: number of this process among those that have had the directory without its being
                given back; asked on the first rank.
        """
        super().__init__(asynchronous=asynchronous)
        self._directory = Place.of(directory)
        self._retention = retention
        self._guard = guard
        self._before_commit = before_commit
        self._elsewhere = elsewhere
        self._turn = turn
        self._ours = set() if continues is None else {continues.name}
        self._lost_one = False
        self._path: Place | None = None
        self._continues = continues

    @property
    def newest(self) -> Place | None:
        """The last checkpoint that is known to be committed, or that the run goes on from."""
        return self._path or self._continues

    def save(
        self, engine: ZeroEngine, state: Mapping[str, Any], *, step: int
    ) -> CheckpointError | None:
        """Takes a snapshot and begins to write it; every rank must call it, between steps.

        Waits for the write before, if that has not ended. If that has failed, this one is tried
        all the same: a store may be well again.

        Args:
            engine: what to save.
            state: what else to keep, as JSON has it and the same on all ranks: of a run what
                `train.loop.state_of` says. `step`, `optimizer_steps` and
                `fp8_amaxes` are added.
            step: steps made so far.

        Returns:
            What kept the checkpoint before (or this one, if not asynchronous) from being written,
            if anything did and training may go on.

        Raises:
            CheckpointError: some rank could not write the last two (or this one, if not
                asynchronous) and they are not saved elsewhere; or the directory was taken over.
                Those before are still there.
        """
        lost: CheckpointError | None = None
        try:
            self._wait()
        except CheckpointError as error:
            self._bear(error, is_first=not self._lost_one)
            lost = error
        self._lost_one = lost is not None
        try:
            self._begin(engine, state, step=step)
        except CheckpointError as error:
            self._bear(error, is_first=False)
            lost = error
        return lost

    def _bear(self, error: CheckpointError, *, is_first: bool) -> None:
        """Raise what training cannot go on with."""
        if isinstance(error, TakenOverError) or not (is_first or self._elsewhere()):
            raise error

    def finish(self) -> Place:
        """Waits until everything is written; every rank must call it.

        Returns:
            The last checkpoint.

        Raises:
            CheckpointError: some rank could not write it. Those before it are still there.
        """
        self._wait()
        assert self._path is not None, "nothing was saved"
        return self._path

    def go_back(
        self,
        is_meant: Callable[[Place], bool],
        *,
        tell: Callable[[str], object],
        once_found: Callable[[], object] = lambda: None,
    ) -> Place | None:
        """Makes an earlier checkpoint the latest, after the last write; every rank must call it.

        Args:
            is_meant: whether it is this one; asked on the first rank, the newest first.
            tell: told of a last one that could not be written.
            once_found: called on every rank before it is made the latest, if there is one.

        Returns:
            The checkpoint; None if none is meant.

        Raises:
            CheckpointError: the directory was taken over, or cannot be read or written.
        """
        try:
            self._wait()
        except TakenOverError:
            raise
        except CheckpointError as error:  # those before it are whole
            tell(str(error))

        def choose() -> Place | None:
            self._require_ours()
            found = (self._directory / name for name in reversed(complete(self._directory)))
            return next(filter(is_meant, found), None)

        chosen = self._agreed(on_first_rank, self._directory, choose)
        if chosen is None:
            return None
        once_found()

        def point() -> None:
            point_to(chosen, guard=self._require_ours)
            self._ours = {chosen.name}

        self._agreed(on_first_rank, self._directory, point)
        self._path = chosen
        return chosen

    @override
    def _write(self, slices: list[StateSlice], document: bytes, step: int) -> None:
        here = self._directory
        staged, turn = self._agreed(on_first_rank, here, lambda: self._stage(step))
        try:
            written = self._agreed(
                on_all_ranks, staged, lambda: write_share(staged, slices, turn=turn)
            )
            parts = gathered(written, group=self._group)
            self._agreed(on_first_rank, staged, lambda: self._commit(staged, parts, document))
        except TakenOverError:
            raise  # what lies there is another's
        except CheckpointError:
            # A full disk should not stay full; a store that does not answer is not asked again.
            if dist.get_rank() == 0 and not self._directory.is_remote:
                for mend in (clean, withdraw):
                    with contextlib.suppress(OSError, InUseError):
                        self._require_ours()
                        mend(self._directory, guard=self._require_ours)
            raise
        self._path = staged

    def _stage(self, step: int) -> tuple[Place, int]:
        self._require_ours()
        return stage(self._directory, step, guard=self._require_ours), self._turn()

    def _commit(self, staged: Place, parts: list[Index], document: bytes) -> None:
        self._require_ours()
        self._before_commit()
        announce(staged, guard=self._require_ours)  # what was before may have taken long
        self._ours.add(staged.name)  # even if it looks as if what follows failed
        # It is whole then, and the latest, for whoever looks.
        seal(staged, parts, document, guard=self._require_ours)
        commit(staged, retention=self._retention, guard=self._require_ours)
        self._ours = {staged.name}

    def _require_ours(self) -> None:
        """See that no other run has saved here meanwhile."""
        self._guard()
        newest = pointed_to(self._directory)
        if newest is not None and newest not in self._ours:
            raise InUseError(
                f"the newest checkpoint in {self._directory} is {newest[:_NAME_SHOWN]!r}, which "
                "this run has not written: another one has been here meanwhile, so this one stops, "
                "and removes nothing there; start it again to go on from there"
            )
