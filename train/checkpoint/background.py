"""Writing snapshots of training state while training goes on.

A saver copies this rank's share into buffers of its own and returns. A thread of each rank then
writes it; the threads agree over a process group that nobody else uses.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, Self, TypeVar

import torch
import torch.distributed as dist

from parallel.launch import total
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import StateSlice, addresses, local_slices, optimizer_steps
from train.checkpoint.chunks import cut, write_chunks
from train.checkpoint.format import Index, json_bytes
from train.errors import CheckpointError, InUseError
from train.storage.place import Place

Result = TypeVar("Result")

SLOWEST_WRITE: Final = timedelta(hours=6)
"""How long ranks wait for each other's chunks before a write counts as stuck."""

LAST_WRITE_SECONDS: Final = 60.0
"""How long a write may still go on when training has failed."""


class TakenOverError(CheckpointError):
    """The directory is another process's by now."""


class BackgroundSaver(ABC):
    """Writes snapshots, one after another; made once, by every rank.

    As a context it finishes the last write; if training has failed it gives the write a minute,
    for this rank cannot know whether the others still live. Who interrupts it does not wait.

    Args:
        asynchronous: write in the background, from a copy of this rank's share in host memory;
            else write at once, without the copy.
    """

    def __init__(self, *, asynchronous: bool) -> None:
        self._asynchronous = asynchronous
        # A rank may write longer than the others by as much as its store is slower.
        self._group: Any = dist.new_group(backend="gloo", timeout=SLOWEST_WRITE)
        self._room: torch.Tensor | None = None
        self._addresses: list[int] = []
        self._slices: list[StateSlice] = []
        self._targets: list[StateSlice] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._wait()
            dist.destroy_process_group(self._group)
        elif self._thread is not None and not issubclass(kind, KeyboardInterrupt):
            self._thread.join(LAST_WRITE_SECONDS)

    @abstractmethod
    def _write(self, slices: list[StateSlice], document: bytes, step: int) -> None:
        """Writes this rank's share, while the other ranks do the same.

        Args:
            slices: of training state, in the order of its file.
            document: what lies beside the tensors.
            step: steps made so far.

        Raises:
            CheckpointError: some rank could not; on all ranks.
        """

    def _begin(self, engine: ZeroEngine, state: Mapping[str, Any], *, step: int) -> None:
        """Takes a snapshot and begins to write it, after `_wait`.

        Raises:
            CheckpointError: as `_write`, if that is not asynchronous.
        """
        everything = {
            **state,
            "step": step,
            "optimizer_steps": optimizer_steps(engine),
        }
        if engine.scales is not None:
            everything["fp8_amaxes"] = engine.scales.last.tolist()
        # Fails here, and on every rank alike, if it is not what JSON can hold.
        document = json_bytes(everything, indent=1)
        slices = self._views(engine)
        if not self._asynchronous:
            self._write(slices, document, step)
            return
        copies = self._snapshot(slices)
        self._thread = threading.Thread(
            target=self._write_aside,
            args=(copies, document, step),
            name="checkpoint",
            # A rank that fails must be able to end while others are waited for.
            daemon=True,
        )
        self._thread.start()

    def is_busy(self) -> bool:
        """Whether some rank still writes; every rank must call it."""
        is_writing = self._thread is not None and self._thread.is_alive()
        return total(float(is_writing))[0] > 0

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _views(self, engine: ZeroEngine) -> list[StateSlice]:
        """What this rank has to save; the same list as long as nothing has moved."""
        if (found := addresses(engine)) != self._addresses:
            self._addresses, self._slices, self._targets = found, owned_slices(engine), None
        return self._slices

    def _snapshot(self, slices: list[StateSlice]) -> list[StateSlice]:
        is_first = self._room is None
        if self._targets is None:
            self._targets = self._targets_of(slices)
        copies = self._targets
        trained = {part.name for part in slices if part.kind != "value"}
        pairs = [
            (part.tensor, copy.tensor)
            for part, copy in zip(slices, copies, strict=True)
            if part is not copy and (is_first or part.name in trained)
        ]
        if pairs:
            sources, targets = map(list, zip(*pairs, strict=True))
            # One call for all: adapters are hundreds of small tensors.
            torch._foreach_copy_(targets, sources, non_blocking=True)  # pyright: ignore[reportPrivateImportUsage]
        if any(part.tensor.is_cuda for part in slices):
            torch.cuda.synchronize()
        return copies

    def _targets_of(self, slices: list[StateSlice]) -> list[StateSlice]:
        """Where each slice is copied to; itself if it can be written from where it lies."""
        trained = {part.name for part in slices if part.kind != "value"}
        # What is fixed does not change; on a GPU it is copied once.
        moving = [part for part in slices if part.name in trained or part.tensor.is_cuda]
        num_bytes = sum(part.tensor.nbytes for part in moving)
        if self._room is None:
            # A GPU copies to pinned memory without a detour.
            pinned = torch.cuda.is_available()
            self._room = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        assert self._room.numel() == num_bytes, "the share of a rank never changes"
        # Wide types come first, so that each begins at a multiple of its width.
        rooms = iter(self._room.split([part.tensor.nbytes for part in moving]))
        return [
            replace(part, tensor=next(rooms).view(part.tensor.dtype))
            if part.name in trained or part.tensor.is_cuda
            else part
            for part in slices
        ]

    def _write_aside(self, slices: list[StateSlice], document: bytes, step: int) -> None:
        try:
            self._write(slices, document, step)
        except BaseException as error:  # raised by whoever waits
            self._error = error

    def _agreed(
        self, ranks: Callable[..., Result], place: Place, work: Callable[[], Result]
    ) -> Result:
        def told() -> Result:
            try:
                return work()
            except InUseError as error:
                raise TakenOverError(str(error)) from None
            except OSError as error:
                raise CheckpointError(
                    f"{place} cannot be written ({error.strerror or error}); the checkpoints "
                    "before it are whole"
                ) from error

        return ranks(told, CheckpointError, group=self._group)


def owned_slices(engine: ZeroEngine) -> list[StateSlice]:
    """What this rank has to save, as views of training state in the order of its file."""
    return cut(part for part in local_slices(engine) if part.owned)


def chunk_file(rank: int, *, turn: int = 1) -> str:
    """Name of the file that a rank writes.

    One who took a directory over names them by its turn: who looked dead, and wakes while it writes
    the same step, must not write over them.
    """
    return f"chunks-{rank:05d}{'' if turn == 1 else f'-{turn}'}.safetensors"


def write_share(staged: Place, slices: list[StateSlice], *, turn: int = 1) -> Index:
    """Writes this rank's file into the directory of a checkpoint; what the index says of it."""
    if not slices:  # fewer elements than ranks
        return Index(parameters={}, files={})
    return write_chunks(staged / chunk_file(dist.get_rank(), turn=turn), slices)
