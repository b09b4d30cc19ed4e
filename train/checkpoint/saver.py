"""Saves training state while training goes on.

`Saver.save` copies this rank's share into buffers of its own and returns. A thread of each rank
then writes it; the threads agree over a process group that nobody else uses, and the first rank
commits. No tensor is gathered on one rank.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from parallel.agreement import gathered, on_all_ranks, on_first_rank
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import StateSlice, local_slices, optimizer_steps
from train.checkpoint.chunks import cut, write_chunks
from train.checkpoint.directory import (
    Retention,
    clean,
    commit,
    complete,
    point_to,
    pointed_to,
    stage,
)
from train.checkpoint.format import Index, json_bytes, seal
from train.errors import CheckpointError, InUseError
from train.storage.place import Place

Result = TypeVar("Result")

SLOWEST_WRITE = timedelta(hours=6)
"""How long ranks wait for each other's chunks before a write counts as stuck."""

LAST_WRITE_SECONDS = 60.0
"""How long a write may still go on when training has failed."""

_NAME_SHOWN = 80


class _TakenOverError(CheckpointError):
    """The directory is another process's by now."""


class Saver:
    """Writes a run's checkpoints, one after another; made once, by every rank.

    A crash at any instant leaves the previous checkpoint whole. As a context it finishes the last
    write; if training has failed it gives the write a minute, for this rank cannot know whether
    the others still live. Who interrupts it does not wait.
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
            before_commit: called on the first rank once a checkpoint is whole and before it counts;
                one that raises OSError keeps it from counting.
        """
        self._directory = Place.of(directory)
        self._retention = retention
        self._asynchronous = asynchronous
        self._guard = guard
        self._before_commit = before_commit
        self._ours = set() if continues is None else {continues.name}
        # A rank may write longer than the others by as much as its store is slower.
        self._group: Any = dist.new_group(backend="gloo", timeout=SLOWEST_WRITE)
        self._room: torch.Tensor | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._lost_one = False
        self._path: Place | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._wait()
            dist.destroy_process_group(self._group)
        elif self._thread is not None and not issubclass(kind, KeyboardInterrupt):
            self._thread.join(LAST_WRITE_SECONDS)

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
            What kept the checkpoint before from being written, if anything did.

        Raises:
            CheckpointError: some rank could not write the last two (or this one, if not
                asynchronous), or the directory was taken over. Those before are still there.
        """
        lost: CheckpointError | None = None
        try:
            self._wait()
        except CheckpointError as error:
            if self._lost_one or isinstance(error, _TakenOverError):
                raise
            lost = error
        self._lost_one = lost is not None
        everything = {
            **state,
            "step": step,
            "optimizer_steps": optimizer_steps(engine),
        }
        if engine.scales is not None:
            everything["fp8_amaxes"] = engine.scales.last.tolist()
        # Fails here, and on every rank alike, if it is not what JSON can hold.
        document = json_bytes(everything, indent=1)
        slices = owned_slices(engine)
        if not self._asynchronous:
            self._write(slices, document, step)
            return lost
        copies = self._snapshot(slices)
        self._thread = threading.Thread(
            target=self._write_aside,
            args=(copies, document, step),
            name="checkpoint",
            # A rank that fails must be able to end while others are waited for.
            daemon=True,
        )
        self._thread.start()
        return lost

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
        self, is_meant: Callable[[Place], bool], *, tell: Callable[[str], object]
    ) -> Place | None:
        """Makes an earlier checkpoint the latest, after the last write; every rank must call it.

        Args:
            is_meant: whether it is this one; asked on the first rank, the newest first.
            tell: told of a last one that could not be written.

        Returns:
            The checkpoint; None if none is meant.

        Raises:
            CheckpointError: the directory was taken over, or cannot be read or written.
        """
        try:
            self._wait()
        except _TakenOverError:
            raise
        except CheckpointError as error:  # those before it are whole
            tell(str(error))

        def choose() -> Place | None:
            self._require_ours()
            found = (self._directory / name for name in reversed(complete(self._directory)))
            chosen = next(filter(is_meant, found), None)
            if chosen is not None:
                point_to(chosen)
                self._ours = {chosen.name}
            return chosen

        chosen = self._agreed(on_first_rank, self._directory, choose)
        self._path = chosen or self._path
        return chosen

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _snapshot(self, slices: list[StateSlice]) -> list[StateSlice]:
        trained = {part.name for part in slices if part.kind != "value"}
        # What is fixed can be written from where it lies; on a GPU it is copied once.
        moving = [part for part in slices if part.name in trained or part.tensor.is_cuda]
        num_bytes = sum(part.tensor.nbytes for part in moving)
        is_first = self._room is None
        if self._room is None:
            # A GPU copies to pinned memory without a detour.
            pinned = torch.cuda.is_available()
            self._room = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        assert self._room.numel() == num_bytes, "the share of a rank never changes"
        copies: list[StateSlice] = []
        # Wide types come first, so that each begins at a multiple of its width.
        rooms = iter(self._room.split([part.tensor.nbytes for part in moving]))
        for part in slices:
            if part.name not in trained and not part.tensor.is_cuda:
                copies.append(part)
                continue
            copy = next(rooms).view(part.tensor.dtype)
            if is_first or part.name in trained:
                copy.copy_(part.tensor, non_blocking=True)
            copies.append(replace(part, tensor=copy))
        if any(part.tensor.is_cuda for part in slices):
            torch.cuda.synchronize()
        return copies

    def _write_aside(self, slices: list[StateSlice], document: bytes, step: int) -> None:
        try:
            self._write(slices, document, step)
        except BaseException as error:  # raised by whoever waits
            self._error = error

    def _write(self, slices: list[StateSlice], document: bytes, step: int) -> None:
        here = self._directory
        staged = self._agreed(on_first_rank, here, lambda: self._stage(step))
        try:
            written = self._agreed(on_all_ranks, staged, lambda: _write_share(staged, slices))
            parts = gathered(written, group=self._group)
            self._agreed(on_first_rank, staged, lambda: self._commit(staged, parts, document))
        except _TakenOverError:
            raise  # what lies there is another's
        except CheckpointError:
            # A full disk should not stay full; a store that does not answer is not asked again.
            if dist.get_rank() == 0 and not self._directory.is_remote:
                with contextlib.suppress(OSError, InUseError):
                    self._require_ours()
                    clean(self._directory)
            raise
        self._path = staged

    def _stage(self, step: int) -> Place:
        self._require_ours()
        return stage(self._directory, step)

    def _commit(self, staged: Place, parts: list[Index], document: bytes) -> None:
        self._require_ours()
        seal(staged, parts, document)
        self._before_commit()
        self._ours.add(staged.name)  # even if it looks as if this failed
        commit(staged, retention=self._retention)
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

    def _agreed(
        self, ranks: Callable[..., Result], place: Place, work: Callable[[], Result]
    ) -> Result:
        def told() -> Result:
            try:
                return work()
            except InUseError as error:
                raise _TakenOverError(str(error)) from None
            except OSError as error:
                raise CheckpointError(
                    f"{place} cannot be written ({error.strerror or error}); the checkpoints "
                    "before it are whole"
                ) from error

        return ranks(told, CheckpointError, group=self._group)


def owned_slices(engine: ZeroEngine) -> list[StateSlice]:
    """What this rank has to save, as views of training state in the order of its file."""
    return cut(part for part in local_slices(engine) if part.owned)


def _write_share(staged: Place, slices: list[StateSlice]) -> Index:
    if not slices:  # fewer elements than ranks
        return Index(parameters={}, files={})
    return write_chunks(staged / f"chunks-{dist.get_rank():05d}.safetensors", slices)
