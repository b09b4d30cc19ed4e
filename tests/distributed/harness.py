"""Gloo ranks for tests: processes that meet through a file (no ports), one thread each.

`run_ranks(work, 2, *arguments)` calls a top-level function on every rank and returns what each
returned. Importing DeepSpeed takes seconds a rank, so `RankPool` keeps its processes for many
calls. What fails here hangs, so every call has a hard time limit, after which the stacks of all
ranks are shown.
"""

import contextlib
import faulthandler
import gc
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from tests import warm

START_SECONDS = 15.0
"""What each rank adds to the first call's limit, for which everything may have to be imported."""

GRACE_SECONDS = 3.0
"""How long the other ranks may still answer once one has failed."""


class RanksFailed(AssertionError):
    """A rank raised, died or did not answer in time."""


def run_ranks(
    work: Callable[..., Any], num_ranks: int, *arguments: Any, timeout_seconds: float = 120
) -> list[Any]:
    """Calls `work(*arguments)` on fresh ranks; returns what each returned, in rank order."""
    with RankPool(num_ranks) as pool:
        return pool.run(work, *arguments, timeout_seconds=timeout_seconds)


class RankPool:
    """Ranks that stay alive between calls; after a failure the next call starts fresh ones."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, work: Callable[..., Any], *arguments: Any, timeout_seconds: float = 120
    ) -> list[Any]:
        """Calls `work(*arguments)` on every rank; both must be picklable."""
        if not self._processes:
            self._start()
            timeout_seconds += START_SECONDS * self._num_ranks
        # Plain pickle: multiprocessing's own would send tensors as handles of shared memory.
        request = pickle.dumps((work, arguments))
        for pipe in self._pipes:
            pipe.send_bytes(request)
        deadline = time.monotonic() + timeout_seconds
        answers: dict[int, Any] = {}
        failures: list[tuple[int, str]] = []
        while len(answers) + len(failures) < self._num_ranks:
            waiting = [
                pipe
                for rank, pipe in enumerate(self._pipes)
                if rank not in answers and rank not in dict(failures)
            ]
            for ready in wait(waiting, timeout=max(0.0, deadline - time.monotonic())):
                rank = self._pipes.index(ready)  # pyright: ignore[reportArgumentType]  # one of ours
                succeeded, value = self._answer(rank)
                if succeeded:
                    answers[rank] = value
                else:
                    # The others may now wait for ever; what failed first is what matters.
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                    failures.append((rank, value))
            if time.monotonic() >= deadline:
                break
        if len(answers) == self._num_ranks:
            return [answers[rank] for rank in range(self._num_ranks)]
        raise RanksFailed(self._report(answers, failures, timeout_seconds))

    def close(self) -> None:
        """Ends the ranks; those that do not leave by themselves are killed."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send_bytes(b"")
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _start(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="ranks-")
        context = warm.context()
        for rank in range(self._num_ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(rank, self._num_ranks, self._directory.name, theirs, dict(os.environ)),
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _answer(self, rank: int) -> tuple[bool, Any]:
        try:
            return pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, OSError):
            self._processes[rank].join(timeout=5)
            return False, f"the process ended with exit code {self._processes[rank].exitcode}\n"

    def _report(
        self, answers: dict[int, Any], failures: list[tuple[int, str]], timeout_seconds: float
    ) -> str:
        silent = [
            rank
            for rank in range(self._num_ranks)
            if rank not in answers and rank not in dict(failures)
        ]
        for rank in silent:
            with contextlib.suppress(OSError, TypeError):
                os.kill(self._processes[rank].pid or 0, signal.SIGUSR1)
        parts = [f"rank {rank} failed:\n{message}" for rank, message in failures[:1]]
        if not failures:
            parts.append(f"ranks {silent} did not answer within {timeout_seconds} seconds")
        for rank in silent:
            stacks = self._stacks(rank)
            parts.append(f"rank {rank} was here:\n{stacks}")
            self._processes[rank].kill()
        self.close()
        return "\n".join(parts)

    def _stacks(self, rank: int) -> str:
        assert self._directory is not None
        file = Path(self._directory.name) / f"stacks-{rank}"
        deadline = time.monotonic() + GRACE_SECONDS
        while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.1)  # the rest of what is being written
        return file.read_text() if file.exists() else "(still starting)"


def _serve(
    rank: int, num_ranks: int, directory: str, pipe: Connection, environment: dict[str, str]
) -> None:
    warm.replace_environment(environment)
    stacks = open(Path(directory) / f"stacks-{rank}", "w")  # noqa: SIM115  # open until the end
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        LOCAL_WORLD_SIZE=str(num_ranks),
        OMP_NUM_THREADS="1",
        # DeepSpeed asks that they be set, and does not use them.
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=600),
    )
    while request := pipe.recv_bytes():
        work, arguments = pickle.loads(request)
        try:
            answer = pickle.dumps((True, work(*arguments)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        sys.stdout.flush()
        pipe.send_bytes(answer)
        if not gc.get_freeze_count():
            # DeepSpeed collects garbage at every turn: not through all that has been imported.
            gc.collect()
            gc.freeze()
    with contextlib.suppress(RuntimeError):  # the others may have been killed
        dist.barrier()
    dist.destroy_process_group()
