"""Each case runs in processes of its own: what one leaves behind cannot slow the next."""

import contextlib
import faulthandler
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")

GRACE_SECONDS = 15.0
"""How long after the time limit a process may still be ending."""


class ProcessFailed(RuntimeError):
    """A process raised, died or did not answer in time."""


def in_processes(
    work: Callable[..., Result],
    *arguments: Any,
    ranks: int,
    threads: int,
    timeout_seconds: float,
    cuda: bool = False,
) -> Result:
    """Call `work(*arguments)` on fresh ranks of one gloo group; returns what rank 0 returned.

    Args:
        work: a top-level function.
        arguments: what it is given; both must be picklable.
        ranks: processes.
        threads: threads that each computes with.
        timeout_seconds: after which the stacks of all ranks go to stderr and the ranks are ended.
        cuda: whether the processes may see GPUs; `work` then joins a group by itself.

    Raises:
        ProcessFailed: with the traceback of the first rank that failed.
    """
    # Fork would copy torch's threads.
    context = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + timeout_seconds
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        pairs = [context.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            context.Process(
                target=_serve,
                args=(rank, ranks, threads, directory, timeout_seconds, cuda, pairs[rank][1]),
                kwargs={"work": work, "arguments": arguments},
            )
            for rank in range(ranks)
        ]
        with _environment(threads=threads, cuda=cuda):
            for process in processes:
                process.start()
        for _, theirs in pairs:
            theirs.close()
        try:
            answers = [_answer(pipe, rank, deadline) for rank, (pipe, _) in enumerate(pairs)]
            return answers[0]
        finally:
            for process in processes:
                process.join(timeout=max(1.0, min(15.0, deadline - time.monotonic())))
                if process.is_alive():
                    process.kill()
                    process.join()


def _answer(pipe: Connection, rank: int, deadline: float) -> Any:
    # A rank dumps its stacks by itself, counting from when it has started; it gets the time.
    if not pipe.poll(max(0.0, deadline - time.monotonic()) + GRACE_SECONDS):
        raise ProcessFailed(f"rank {rank} did not finish in time; its stacks are above")
    try:
        succeeded, value = pipe.recv()
    except EOFError:
        raise ProcessFailed(f"rank {rank} ended without an answer") from None
    if not succeeded:
        raise ProcessFailed(f"rank {rank} failed:\n{value}")
    return value


@contextlib.contextmanager
def _environment(*, threads: int, cuda: bool) -> Generator[None]:
    # Read when torch is first imported, which is before `_serve` runs.
    changed = {"OMP_NUM_THREADS": str(threads)}
    if not cuda:
        changed |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(
    rank: int,
    ranks: int,
    threads: int,
    directory: str,
    timeout_seconds: float,
    cuda: bool,
    pipe: Connection,
    *,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    faulthandler.dump_traceback_later(timeout_seconds, exit=True)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
    )
    try:
        if cuda:
            # An address left over from a launcher would make a lone rank wait for others.
            os.environ.pop("MASTER_ADDR", None)
        else:
            # DeepSpeed asks that they be set; ranks meet through a file instead.
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
            dist.init_process_group(
                "gloo",
                init_method=f"file://{directory}/store",
                rank=rank,
                world_size=ranks,
                timeout=timedelta(seconds=timeout_seconds),
            )
        answer = (True, work(*arguments))
    except Exception:
        answer = (False, traceback.format_exc())
    pipe.send(answer)
    if answer[0] and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()
