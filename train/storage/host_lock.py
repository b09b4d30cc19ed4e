"""A lock between the processes of a host, whose holder shows that it is alive."""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from train.errors import StorageError
from train.storage.notices import INTERVAL_SECONDS, notice
from train.storage.patience import StoppedError

FULL: Final = {errno.ENOSPC, errno.EDQUOT}
"""Error numbers of a full disk."""
_POLL_SECONDS: Final = 0.05
UNSUPPORTED: Final = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""Error numbers of a file system without locks."""


@contextlib.contextmanager
def host_lock(
    path: Path,
    *,
    patience_seconds: float,
    waits_for: str,
    progress: Callable[[], object] = lambda: None,
    stopped: threading.Event | None = None,
) -> Generator[float]:
    """Hold a lock file; it dies with the process, and its file stays.

    Where the file system has no locks, or no room for the file, there is none: what it guards is
    then done twice, which takes longer and does no harm.

    Args:
        path: of the lock file, in a directory that exists.
        patience_seconds: longest wait for a holder that shows no progress.
        waits_for: what the holder does, for messages.
        progress: something that changes while the holder gets on.
        stopped: when set, the lock is no longer wanted.

    Yields:
        Seconds for which the last holder had made no progress when the lock passed on.

    Raises:
        StorageError: the holder shows no progress, or the file cannot be made.
        StoppedError: it is no longer wanted.
    """
    stalled_since = time.monotonic()
    seen = progress()
    while True:
        try:
            descriptor = try_lock(path)
        except OSError as error:
            if error.errno not in FULL | UNSUPPORTED:
                raise StorageError(
                    f"Cannot write to the data cache {path.parent} ({error.strerror}); set "
                    "storage.cache to another directory"
                ) from error
            yield 0.0
            return
        stalled_seconds = time.monotonic() - stalled_since
        if descriptor is not None:
            break
        if stopped is not None and stopped.is_set():
            raise StoppedError
        if (now := progress()) != seen:
            seen, stalled_since = now, time.monotonic()
        if stalled_seconds >= patience_seconds:
            raise StorageError(
                f"Waited {patience_seconds:g} s for another process {waits_for}; see whether it "
                "hangs, or give this run a cache of its own (storage.cache)"
            )
        if stalled_seconds >= INTERVAL_SECONDS:
            notice(f"waiting for another process {waits_for}, for {stalled_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    try:
        yield stalled_seconds
    finally:
        # Not by closing alone: a process forked meanwhile has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """A descriptor that holds a lock file until it is closed; None if another one does.

    Raises:
        OSError: the file cannot be made, or the file system has no locks (`UNSUPPORTED`).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    is_held = False
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been removed between opening and locking.
            is_held = os.fstat(descriptor).st_nlink > 0
        return descriptor if is_held else None
    finally:
        if not is_held:
            os.close(descriptor)
