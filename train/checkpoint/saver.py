"""Saves training state while training goes on.

`Saver.save` copies this rank's share into buffers of its own and returns. A thread of each rank
then writes it; the threads agree over a process group that nobody else uses, and the first rank
commits. No tensor is gathered on one rank.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from parallel.agreement import gathered, on_all_ranks
from parallel.zero import state as zero_state
from parallel.zero.engine import ZeroEngine
from train.checkpoint.chunks import Piece, cut, write_chunks
from train.checkpoint.directory import Retention, clean, commit, stage
from train.checkpoint.format import (
    STATE_NAME,
    FileRecord,
    Index,
    ParameterRecord,
    TensorKind,
    json_bytes,
    merge,
    record_of,
)
from train.errors import CheckpointError
from train.storage.place import Place

Result = TypeVar("Result")

SLOWEST_WRITE = timedelta(hours=6)
"""How long ranks wait for each other's chunks before a write counts as stuck."""

LAST_WRITE_SECONDS = 60.0
"""How long a write may still go on when training has failed."""


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What a rank has written: its part of the index."""

    records: dict[str, ParameterRecord]
    files: dict[str, FileRecord]


class Saver:
    """Writes a run's checkpoints, one after another; made once, by every rank.

    A crash at any instant leaves the previous checkpoint whole. As a context it finishes the last
    write; if training has failed it gives the write a minute, for this rank cannot know whether
    the others still live.
    """

    def __init__(
        self, directory: Place | Path, *, retention: Retention, asynchronous: bool = True
    ) -> None:
        """Prepares for saving; every rank must call it.

        Args:
            directory: where the run's checkpoints live, on storage that all ranks share.
            retention: which earlier ones stay.
            asynchronous: write in the background, from a copy of this rank's share in host
                memory; else write before `save` returns, without the copy.
        """
        self._directory = Place.of(directory)
        self._retention = retention
        self._asynchronous = asynchronous
        # A rank may write longer than the others by as much as its store is slower.
        self._group: Any = dist.new_group(backend="gloo", timeout=SLOWEST_WRITE)
        self._room: torch.Tensor | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._num_failed = 0
        self._path: Place | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
            dist.destroy_process_group(self._group)
        elif self._thread is not None:
            self._thread.join(LAST_WRITE_SECONDS)

    def save(
        self, engine: ZeroEngine, state: Mapping[str, Any], *, step: int
    ) -> CheckpointError | None:
        """Takes a snapshot and begins to write it; every rank must call it, between steps.

        Waits for the write before, if that has not ended. If that has failed, this one is tried
        all the same: a store may be well again.

        Args:
            engine: what to save.
            state: what else to keep, as JSON has it and the same on all ranks: samples consumed,
                seed, resolved config under `config`, run id, code version. `step` and
                `optimizer_steps` are added.
            step: steps made so far.

        Returns:
            What kept the checkpoint before from being written, if anything did.

        Raises:
            CheckpointError: some rank could not write the last two (or this one, if not
                asynchronous). Those before are still there.
        """
        lost = self._earlier_failure()
        everything = {
            **state,
            "step": step,
            "optimizer_steps": zero_state.optimizer_steps(engine),
        }
        # Fails here, and on every rank alike, if it is not what JSON can hold.
        document = json_bytes(everything, indent=1)
        pieces = owned_pieces(engine)
        if not self._asynchronous:
            self._write(pieces, document, step)
            return lost
        copies = self._snapshot(pieces)
        self._thread = threading.Thread(
            target=self._write_aside,
            args=(copies, document, step),
            name="checkpoint",
            # A rank that fails must be able to end while others are waited for.
            daemon=True,
        )
        self._thread.start()
        return lost

    def _earlier_failure(self) -> CheckpointError | None:
        try:
            self.finish()
        except CheckpointError as error:
            self._num_failed += 1
            if self._num_failed > 1:
                raise
            return error
        self._num_failed = 0
        return None

    def finish(self) -> Place | None:
        """Waits until everything is written; every rank must call it.

        Returns:
            The last checkpoint, None if none was saved.

        Raises:
            CheckpointError: some rank could not write it. Those before it are still there.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._path

    def _snapshot(self, pieces: list[Piece]) -> list[Piece]:
        num_bytes = sum(_num_bytes(piece) for piece in pieces)
        if self._room is None:
            self._room = _host_memory(num_bytes)
        assert self._room.numel() == num_bytes, "the share of a rank never changes"
        copies: list[Piece] = []
        offset = 0
        # Wide types come first, so that each begins at a multiple of its width.
        for piece in pieces:
            end = offset + _num_bytes(piece)
            copy = self._room[offset:end].view(piece.tensor.dtype)
            copy.copy_(piece.tensor, non_blocking=True)
            copies.append(replace(piece, tensor=copy))
            offset = end
        if any(piece.tensor.is_cuda for piece in pieces):
            torch.cuda.synchronize()
        return copies

    def _write_aside(self, pieces: list[Piece], document: bytes, step: int) -> None:
        try:
            self._write(pieces, document, step)
        except BaseException as error:  # raised by whoever waits
            self._error = error

    def _write(self, pieces: list[Piece], document: bytes, step: int) -> None:
        staged = self._on_first_rank(
            lambda: _writing(self._directory, lambda: stage(self._directory, step))
        )
        try:
            written = self._agreed(lambda: _write_share(staged, pieces))
            parts = gathered(written, group=self._group)
            self._on_first_rank(
                lambda: _writing(staged, lambda: self._commit(staged, parts, document))
            )
        except CheckpointError:
            # A full disk should not stay full; a store that does not answer is not asked again.
            if dist.get_rank() == 0 and not self._directory.is_remote:
                with contextlib.suppress(OSError):
                    clean(self._directory)
            raise
        self._path = staged

    def _commit(self, staged: Place, parts: list[_Written], document: bytes) -> None:
        (staged / STATE_NAME).write(document)
        files = {name: record for part in parts for name, record in part.files.items()}
        files[STATE_NAME] = record_of(document)
        index = Index(parameters=merge(part.records for part in parts), files=files)
        content = json_bytes(index.model_dump(exclude_none=True))
        commit(staged, content, retention=self._retention)

    def _on_first_rank(self, work: Callable[[], Result]) -> Result:
        result = self._agreed(lambda: work() if dist.get_rank() == 0 else None)
        return gathered(result, group=self._group)[0]  # pyright: ignore[reportReturnType]  # rank 0's

    def _agreed(self, work: Callable[[], Result]) -> Result:
        return on_all_ranks(work, CheckpointError, group=self._group)


def owned_pieces(engine: ZeroEngine) -> list[Piece]:
    """What this rank has to save, as views of training state in the order of its file."""
    pieces: list[Piece] = []
    for part in zero_state.local_slices(engine):
        if not part.owned:
            continue
        kinds: dict[TensorKind, torch.Tensor] = state_tensors(part)
        pieces += [
            Piece(
                name=part.name,
                kind=kind,
                region=part.region,
                tensor=tensor.detach(),
                trainable=part.moments is not None,
            )
            for kind, tensor in kinds.items()
        ]
    return cut(pieces)


def state_tensors(part: zero_state.StateSlice) -> dict[TensorKind, torch.Tensor]:
    """The weights and, if it trains, the moments of a slice."""
    if part.moments is None:
        return {"value": part.value}
    return {
        "value": part.value,
        "exp_avg": part.moments["exp_avg"],
        "exp_avg_sq": part.moments["exp_avg_sq"],
    }


def _write_share(staged: Place, pieces: list[Piece]) -> _Written:
    if not pieces:  # fewer elements than ranks
        return _Written(records={}, files={})
    name = f"chunks-{dist.get_rank():05d}.safetensors"
    records, file = _writing(staged / name, lambda: write_chunks(staged / name, pieces))
    return _Written(records=records, files={name: file})


def _writing(place: Place, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except OSError as error:
        raise CheckpointError(
            f"{place} cannot be written ({error.strerror or error}); the checkpoints "
            "before it are whole"
        ) from error


def _num_bytes(piece: Piece) -> int:
    return piece.tensor.numel() * piece.tensor.element_size()


def _host_memory(num_bytes: int) -> torch.Tensor:
    """Memory that a GPU can copy to without a detour, where there is one."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
