"""Ranks of one host: processes that meet through a file (no ports), and whose failures are shown.

`run_ranks(work, argument, ranks=2)` calls a top-level function on fresh ranks; a `RankPool` keeps
its ranks for many calls, for importing DeepSpeed takes seconds a rank. What fails here hangs: every
call has a hard time limit, after which the stacks of all ranks are shown and the ranks ended. Of
several failures the first one is shown, for the others often follow from it.
"""

import atexit
import contextlib
import faulthandler
import gc
import multiprocessing
import os
import pickle
import runpy
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, Final, TypeVar

from parallel.allocator import SETTINGS, let_segments_expand
from train.errors import UserError

Result = TypeVar("Result")

START_SECONDS: Final = 15.0
"""What each rank adds to the first call's limit, for which everything may have to be imported."""

MOST_DIRECTORY_BYTES: Final = 64
"""A socket's path may have 107, and multiprocessing adds up to 40."""

SHORT_DIRECTORIES: Final = ("/tmp", "/var/tmp", "/dev/shm")

GRACE_SECONDS: Final = 3.0
"""How long the other ranks may still answer once one has failed."""


class RanksFailed(RuntimeError):
    """A rank raised, died or did not answer in time."""


def run_ranks(
    work: Callable[..., Result],
    *arguments: Any,
    ranks: int,
    threads: int = 1,
    cuda: bool = False,
    context: BaseContext | None = None,
    timeout_seconds: float,
) -> Result:
    """Calls `work(*arguments)` on fresh ranks, see `RankPool.run`; returns what rank 0 returned."""
    with RankPool(ranks, threads=threads, cuda=cuda, context=context) as pool:
        return pool.run(work, *arguments, timeout_seconds=timeout_seconds)[0]


def shorten_sockets() -> None:
    """Has multiprocessing keep its sockets where their paths fit, if `TMPDIR` is too long.

    Raises:
        UserError: there is no such directory.
    """
    usual = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) <= MOST_DIRECTORY_BYTES:
        return
    usable = [path for path in SHORT_DIRECTORIES if os.access(path, os.W_OK | os.X_OK)]
    if not usable:
        raise UserError(f"TMPDIR is too long for sockets: {tempfile.gettempdir()}; shorten it")
    tempfile.tempdir = usable[0]
    try:
        get_temp_dir()  # which is kept, and inherited by processes
    finally:
        tempfile.tempdir = usual


class RankPool(contextlib.AbstractContextManager["RankPool"]):
    """Ranks that stay alive between calls; after a failure the next call starts fresh ones.

    Args:
        num_ranks: processes.
        threads: that each computes with.
        cuda: whether they may see GPUs; `work` then joins a group by itself.
        context: makes the processes; by default each starts from nothing, since a fork would copy
            torch's threads.
    """

    def __init__(
        self,
        num_ranks: int,
        *,
        threads: int = 1,
        cuda: bool = False,
        context: BaseContext | None = None,
    ) -> None:
        self._num_ranks = num_ranks
        self._threads = threads
        self._cuda = cuda
        self._context: Any = context or multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._directory = ""
        self._opened = contextlib.ExitStack()

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, work: Callable[..., Result], *arguments: Any, timeout_seconds: float = 120
    ) -> list[Result]:
        """Calls `work(*arguments)` on every rank; returns the answers in rank order.

        Args:
            work: a top-level function.
            arguments: what it is given; they and the answers must be picklable.
            timeout_seconds: after which the ranks are ended.

        Raises:
            RanksFailed: with the traceback of the rank that failed first, or the stacks of all.
        """
        if not self._processes:
            self._start()
            timeout_seconds += START_SECONDS * self._num_ranks
        # Plain pickle: multiprocessing's own would send tensors as handles of shared memory.
        request = pickle.dumps((work, arguments))
        for pipe in self._pipes:
            pipe.send_bytes(request)
        deadline = time.monotonic() + timeout_seconds
        answers: dict[int, Result] = {}
        failure = ""
        silent = list(range(self._num_ranks))
        while silent and (left := deadline - time.monotonic()) > 0:
            for ready in wait([self._pipes[rank] for rank in silent], timeout=left):
                rank = self._pipes.index(ready)  # pyright: ignore[reportArgumentType]  # one of ours
                silent.remove(rank)
                succeeded, value = self._answer(rank)
                if succeeded:
                    answers[rank] = value
                else:
                    # The others may now wait for ever; what failed first is what matters.
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                    failure = failure or f"rank {rank} failed:\n{value}"
        if len(answers) == self._num_ranks:
            return [answers[rank] for rank in range(self._num_ranks)]
        failure = failure or f"ranks {silent} did not answer within {timeout_seconds} seconds"
        raise RanksFailed("\n".join([failure, *self._end(silent)]))

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
        self._opened.close()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        shorten_sockets()
        directory = tempfile.TemporaryDirectory(prefix="ranks-")
        self._directory = self._opened.enter_context(directory)
        for rank in range(self._num_ranks):
            ours, theirs = self._context.Pipe()
            # Some of them are read when torch is first imported, perhaps before `_serve` runs.
            with changed_environment(self._variables(rank)) as variables:
                process = self._context.Process(
                    target=_serve,
                    args=(self._directory, theirs, self._threads, self._cuda, variables),
                )
                process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(self._opened.enter_context(ours))

    def _variables(self, rank: int) -> dict[str, str | None]:
        variables: dict[str, str | None] = {
            "OMP_NUM_THREADS": str(self._threads),
            **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(self._num_ranks)),
        }
        if self._cuda:
            settings = dict(os.environ)
            let_segments_expand(settings)
            # An address left over from a launcher would make a lone rank wait for others.
            return variables | {"MASTER_ADDR": None, SETTINGS: settings.get(SETTINGS)}
        # DeepSpeed asks that an address be set, and does not use it.
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        return variables | address | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}

    def _answer(self, rank: int) -> tuple[bool, Any]:
        try:
            return pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, OSError):
            self._processes[rank].join(timeout=5)
            return False, f"the process ended with exit code {self._processes[rank].exitcode}\n"

    def _end(self, silent: list[int]) -> list[str]:
        """Ends all ranks; says where the silent ones were."""
        for rank in silent:
            with contextlib.suppress(OSError):
                os.kill(self._processes[rank].pid or 0, signal.SIGUSR1)
        found = [f"rank {rank} was here:\n{self._stacks(rank)}" for rank in silent]
        for rank in silent:
            self._processes[rank].kill()
        self.close()
        return found

    def _stacks(self, rank: int) -> str:
        file = _stacks_file(self._directory, rank)
        deadline = time.monotonic() + GRACE_SECONDS
        while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.1)  # the rest of what is being written
        return file.read_text() if file.exists() else "(still starting)"


def replace_environment(variables: Mapping[str, str]) -> None:
    """Makes these all of this process's environment."""
    os.environ.clear()
    os.environ.update(variables)


@contextlib.contextmanager
def changed_environment(changes: Mapping[str, str | None]) -> Generator[dict[str, str]]:
    """Within the context, this process's environment has these values, or lacks those of None."""
    before = dict(os.environ)
    changed = {n: value for n, value in {**before, **changes}.items() if value is not None}
    replace_environment(changed)
    try:
        yield changed
    finally:
        replace_environment(before)


def run_module(
    name: str, arguments: Sequence[str], output: Path, environment: Mapping[str, str]
) -> None:
    """`python -X faulthandler -m NAME ARGUMENTS`, all of this process that calls it.

    Args:
        name: of the module.
        arguments: what it is given.
        output: file that all it prints is appended to.
        environment: all its variables.
    """
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.enable()
    # That the module is imported already, where a process was forked from one that had.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    replace_environment(environment)
    sys.argv = [name, *arguments]
    code = 0
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As the interpreter ends, which multiprocessing's own end leaves out.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]  # private
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stacks_file(directory: str, rank: int) -> Path:
    return Path(directory) / f"stacks-{rank}"


def _serve(
    directory: str, pipe: Connection, threads: int, cuda: bool, variables: dict[str, str]
) -> None:
    replace_environment(variables)
    rank, num_ranks = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    stacks = open(_stacks_file(directory, rank), "w")  # noqa: SIM115  # open until the end
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    if not cuda:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{directory}/store",
            rank=rank,
            world_size=num_ranks,
            # Whoever waits in vain is ended by the pool, which shows where it waits.
            timeout=timedelta(hours=1),
        )
    is_frozen = False
    while request := pipe.recv_bytes():
        try:
            work, arguments = pickle.loads(request)
            answer = pickle.dumps((True, work(*arguments)))
        except UserError as error:
            answer = pickle.dumps((False, f"{error}\n"))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        sys.stdout.flush()
        if not is_frozen:
            # DeepSpeed collects garbage at every turn: not through all that has been imported.
            gc.collect()
            gc.freeze()
            is_frozen = True  # counting what is frozen takes 25 ms
        pipe.send_bytes(answer)
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # the others may have been killed
            dist.barrier()
        dist.destroy_process_group()
