"""Saves training state to the nodes' own disks while training goes on, with copies on others."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from typing_extensions import override

from parallel.agreement import gathered, on_all_ranks
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import StateSlice
from train.checkpoint.background import BackgroundSaver, write_share
from train.checkpoint.directory import Retention, clean, complete, newest_of, retire, stage
from train.checkpoint.format import Index, seal
from train.checkpoint.local.disks import KEY, Disks
from train.checkpoint.local.exchange import Transfer, deliver
from train.errors import CheckpointError
from train.storage.place import Place

_KEPT = Retention(keep=1)
_MOST_LEFT_OUT = 3
"""Steps in a row, after which it is told that one takes too long to write."""


class LocalSaver(BackgroundSaver):
    """Writes a run's checkpoints to its nodes' disks; made once, by every rank.

    On each node lies what its ranks own, what was copied there, and an index of all pieces: a step
    is committed on every node or counts for nothing, and only then does the one before go.
    Nothing that fails here ends a run.

    Args:
        disks: of the nodes.
        asynchronous: as for `BackgroundSaver`.
    """

    def __init__(self, disks: Disks, *, asynchronous: bool = True) -> None:
        super().__init__(asynchronous=asynchronous)
        self._disks = disks
        self._home = disks.begin()
        self._lost: CheckpointError | None = None
        self._saved: Place | None = None
        self._newest: Place | None = None
        self._left_out = 0

    @override
    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.settle()
        super().__exit__(kind, *rest)

    @property
    def is_well(self) -> bool:
        """Whether the last step that was to be saved is; the same on all ranks."""
        return self._lost is None and self._saved is not None

    def save(
        self, engine: ZeroEngine, state: Mapping[str, Any], *, step: int, waits: bool
    ) -> CheckpointError | None:
        """Takes a snapshot and begins to write it; every rank must call it, between steps.

        Args:
            engine: what to save.
            state: as for `Saver.save`.
            step: steps made so far.
            waits: for the write before; else this step is left out where that has not ended.

        Returns:
            What keeps steps from being written, if anything does.
        """
        if not waits and self.is_busy():
            self._left_out += 1
            if self._left_out >= _MOST_LEFT_OUT:
                self._lost = CheckpointError(
                    f"{self._home} takes long to write, and {self._left_out} steps were left out: "
                    f"raise {KEY}.every_steps"
                )
            return self._lost
        self._left_out = 0
        self.settle()
        try:
            self._begin(engine, state, step=step)
        except CheckpointError as error:
            self._lost = error
        if not self._asynchronous:
            self.settle()
        return self._lost

    def settle(self) -> Place | None:
        """Waits until everything is written; every rank must call it.

        Returns:
            The last step that was to be saved; None if it is not.
        """
        try:
            self._wait()
        except CheckpointError as error:
            self._lost = error
        if self._newest != self._saved:
            self._lost, self._saved = None, self._newest
        return self._saved if self.is_well else None

    def begin_anew(self) -> None:
        """Forgets all that was saved; every rank must call it.

        Raises:
            RunDirectoryError: that cannot be noted.
        """
        self.settle()
        self._home = self._disks.begin(anew=True)
        self._saved = self._newest = None

    @override
    def _write(self, slices: list[StateSlice], document: bytes, step: int) -> None:
        home, is_lead, is_first = self._home, self._disks.nodes.is_lead, dist.get_rank() == 0
        try:
            staged = home / self._stage(home, step)
            written = self._agreed(on_all_ranks, staged, lambda: write_share(staged, slices))
            parts = gathered(written, group=self._group)
            # Only the first rank's is that of the run, and all indices must be alike.
            document = gathered(document if is_first else b"", group=self._group)[0]
            fault = deliver(self._copies(parts), staged, group=self._group)

            def check() -> None:
                if fault is not None:
                    raise fault

            self._agreed(on_all_ranks, staged, check)
            # Only now: an index says that all is there.
            sealing = partial(seal, staged, parts, document) if is_lead else lambda: None
            self._agreed(on_all_ranks, staged, sealing)
        except CheckpointError:
            if is_lead:
                with contextlib.suppress(OSError):  # a full disk should not stay full
                    clean(home)
            raise
        self._newest = staged
        if is_lead:
            with contextlib.suppress(OSError):  # another time
                self._disks.say_whose()
                names = complete(home)
                retire(home, _KEPT.retired(names, newest=staged.name))

    def _stage(self, home: Place, step: int) -> str:
        """The same new name on all nodes, whatever each has of earlier starts."""

        def name() -> str | None:
            return stage(home, step).name if self._disks.nodes.is_lead else None

        names = gathered(self._agreed(on_all_ranks, home, name), group=self._group)
        return newest_of(filter(None, names))

    def _copies(self, parts: Sequence[Index]) -> list[Transfer]:
        """What goes where: each rank's file to a rank of the next node, and of those behind it."""
        by_node = self._disks.nodes.ranks
        return [
            Transfer(
                name=name,
                num_bytes=file.bytes,
                source=rank,
                target=targets[number % len(targets)],
            )
            for distance in range(1, self._disks.copies + 1)
            for node, ranks in enumerate(by_node)
            for targets in [by_node[(node + distance) % len(by_node)]]
            for number, rank in enumerate(ranks)
            for name, file in parts[rank].files.items()
        ]
