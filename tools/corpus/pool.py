"""Work spread over processes: done parts come back as they are ready, counts while they work."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, forkserver
from typing import Any, Final, TypeVar

from tools.ranks import shorten_sockets
from train.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

Report = Callable[[int, int, int], None]
"""Takes what was done since the last call: bytes, documents, tokens."""

_TOKENIZER_THREADS: Final = "TOKENIZERS_PARALLELISM"
_POLL_SECONDS: Final = 0.2
_PRELOAD: Final = "tools.corpus.writing"
"""What takes seconds to import; pyarrow is left to each process, because importing it starts a
thread, and only a process of one thread is safely forked."""


def spread(
    tasks: Iterable[Task],
    make_worker: Callable[[], Callable[[Task, Report], Result]],
    *,
    workers: int,
    report: Report,
) -> Generator[tuple[Task, Result]]:
    """Do tasks in processes, or in this one where one worker is asked for.

    Args:
        tasks: in the order in which to begin them.
        make_worker: called once in each process; it must be picklable.
        workers: processes.
        report: told how far the work is.

    Yields:
        Each task with its result, as they become ready.

    Raises:
        DataError: whatever a task raised, or a process was killed.
    """
    tasks = list(tasks)
    if not tasks:
        return
    if workers == 1 or len(tasks) == 1:
        # A single task may have all cores; a single worker asked for is a single core.
        os.environ[_TOKENIZER_THREADS] = str(workers > 1).lower()
        worker = make_worker()
        for task in tasks:
            yield task, worker(task, report)
        return
    shorten_sockets()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOAD])
    counts = context.SimpleQueue()
    stop = context.Event()
    executor = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=context,
        initializer=_begin,
        initargs=(make_worker, dict(os.environ), counts, stop),
    )
    try:
        with _uninterrupted():
            forkserver.ensure_running()
            futures: dict[Future[Result], Task] = {
                executor.submit(_do, task): task  # pyright: ignore[reportArgumentType]  # by _begin
                for task in tasks
            }
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, _POLL_SECONDS, return_when=FIRST_COMPLETED)
            while not counts.empty():
                report(*counts.get())
            for future in done:
                yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process was killed, perhaps because memory ran out. Finished parts are "
            "kept: run the same command again, perhaps with fewer --workers."
        ) from error
    finally:
        # Those at work end at their next report. One that still starts needs the queue and the
        # event, which end with this function.
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _uninterrupted() -> Generator[None]:
    """Let Ctrl-C wait until processes are started, of which none is left half begun.

    They inherit it from the server that they are forked from, if that starts here, so that they are
    not interrupted while they import either.
    """
    interrupts: list[int] = []
    # Any thread may be told of a signal, so that blocking it in this one is not enough.
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
        for number in interrupts:
            signal.raise_signal(number)


class Stopped(Exception):
    """The work is given up; nobody waits for the result."""


_do_here: Callable[[Any], Any] | None = None


def _begin(
    make_worker: Callable[[], Callable[[Any, Report], Any]],
    environment: dict[str, str],
    counts: Any,
    stop: Any,
) -> None:
    """Make this process ready for tasks."""
    global _do_here
    # The server that this process was forked from began with the environment of its first user.
    os.environ.clear()
    os.environ.update(environment)
    os.environ[_TOKENIZER_THREADS] = "false"
    # Where a terminal interrupts all of them, the first process tells the others to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(*numbers: int) -> None:
        if stop.is_set():
            raise Stopped
        counts.put(numbers)

    worker = make_worker()

    def work(task: Any) -> Any:
        return worker(task, report)

    _do_here = work


def _do(task: Any) -> Any:
    assert _do_here is not None
    return _do_here(task)


def _end_with_parent() -> None:
    # Otherwise a process whose parent was killed waits for its next task for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
