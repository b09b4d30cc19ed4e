"""A lock between the processes of a host, whose holder shows that it is alive."""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

from train.data.store.open_shard import touch
from train.errors import DataError
from train.storage.landing import FULL
from train.storage.notices import INTERVAL_SECONDS, notice
from train.storage.object_store import StoppedError

_POLL_SECONDS: Final = 0.05
_BEAT_SECONDS: Final = 1.0
_UNSUPPORTED: Final = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


class HostLock:
    """A lock that is held.

    Attributes:
        stalled_seconds: for how long its last holder had made no progress when it was taken over.
    """

    def __init__(self, descriptor: int | None, *, stalled_seconds: float) -> None:
        self.stalled_seconds = stalled_seconds
        self._descriptor = descriptor
        self._beaten_seconds = 0.0

    def beat(self) -> None:
        """Show those who wait that there is progress."""
        now = time.monotonic()
        if self._descriptor is not None and now - self._beaten_seconds >= _BEAT_SECONDS:
            self._beaten_seconds = now
            touch(self._descriptor)


@contextlib.contextmanager
def host_lock(
    path: Path,
    *,
    patience_seconds: float,
    waits_for: str,
    stopped: threading.Event | None = None,
) -> Generator[HostLock]:
    """Hold a lock file; it dies with the process, and its file stays.

    Where the file system has no locks, or no room for the file, there is none: what it guards is
    then done twice, which takes longer and does no harm.

    Args:
        path: of the lock file, in a directory that exists.
        patience_seconds: longest wait for a holder that shows no progress.
        waits_for: what the holder does, for messages.
        stopped: when set, the lock is no longer wanted.

    Raises:
        DataError: the holder shows no progress, or the file cannot be made.
        StoppedError: it is no longer wanted.
    """
    stalled_since = time.monotonic()
    beat_ns: int | None = None
    while True:
        try:
            descriptor = _try_lock(path)
        except OSError as error:
            if error.errno not in FULL | _UNSUPPORTED:
                raise DataError(
                    f"Cannot write to the data cache {path.parent} ({error.strerror}); choose "
                    "another directory for it."
                ) from error
            yield HostLock(None, stalled_seconds=0.0)
            return
        stalled_seconds = time.monotonic() - stalled_since
        if descriptor is not None:
            break
        if stopped is not None and stopped.is_set():
            raise StoppedError
        seen_ns = _beat_of(path)
        if beat_ns is not None and seen_ns != beat_ns:
            stalled_since = time.monotonic()
        beat_ns = seen_ns
        if stalled_seconds >= patience_seconds:
            raise DataError(
                f"Waited {patience_seconds:g} s for another process {waits_for}; see whether it "
                "hangs, or give this run its own cache."
            )
        if stalled_seconds >= INTERVAL_SECONDS:
            notice(f"waiting for another process {waits_for}, for {stalled_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    try:
        yield HostLock(descriptor, stalled_seconds=stalled_seconds)
    finally:
        # Not by closing alone: a process forked meanwhile has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None if another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    # Held, or removed between opening and locking.
    os.close(descriptor)
    return None


def _beat_of(path: Path) -> int | None:
    try:
        return path.stat().st_atime_ns
    except OSError:
        return None
